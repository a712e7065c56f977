"""Bundles: whole or not there, and never read unless every byte is what was signed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genward import oms
from genward.bundle import FILE_LIMIT, MANIFEST, SIGNATURE, Bundle, manifest_bytes, seal
from genward.errors import Conflict, IntegrityError, NotFound, Unavailable, UsageError
from genward.keys import LocalKeys
from genward.manifest import validate_manifest
from genward.strictjson import canonical

DIGEST = "sha256:" + "ab" * 32
FILES = {
    "generator.onnx": bytes(range(256)) * 40,
    "codec.json": b"{}",
    "policies/policy.yaml": b"name: strict\n",
    "empty.txt": b"",
}


def manifest(**changes: Any) -> dict[str, Any]:
    return {
        "name": "alloys",
        "family": {"name": "vae", "config": {"width": 64}, "distribution": "genward", "version": "0.1.0"},
        "codec": "codec.json",
        "dataset": {"digest": DIGEST, "rows": 48_000},
        "graphs": {"sample": {"file": "generator.onnx", "condition": 0, "loops": 0}},
        "table": {"slots": 1000, "candidates": 1, "block": 256, "cells": [], "segments": []},
        "golden": [{"start": 0, "sha256": "cd" * 32}],
        "runtime": {"onnxruntime": "1.31.1", "opset": 20},
        "policy": DIGEST,
        "created": "2026-11-24T12:00:00Z",
        "parent": "",
    } | changes


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> LocalKeys:
    return LocalKeys.create(tmp_path_factory.mktemp("bundle") / "keys")


@pytest.fixture
def folder(tmp_path: Path, keys: LocalKeys) -> Path:
    seal(tmp_path / "bundle", FILES, manifest(), keys)
    return tmp_path / "bundle"


def _open(folder: Path, keys: LocalKeys, **options: Any) -> Bundle:
    return Bundle.open(folder, keys.trusted(), **options)


def test_a_sealed_bundle_opens_with_the_same_bytes(folder: Path, keys: LocalKeys) -> None:
    found = _open(folder, keys)
    assert dict(found.files) == FILES
    assert found.digest == seal(folder, FILES, manifest(), keys)
    assert found.graph() == (FILES["generator.onnx"], {"condition": 0, "loops": 0})
    assert (found.name, found.codec, found.details.table.slots) == ("alloys", b"{}", 1000)
    with pytest.raises(NotFound):
        found.graph("density")


def test_the_id_is_the_digest_of_the_canonical_manifest(folder: Path, keys: LocalKeys) -> None:
    document = (folder / MANIFEST).read_bytes()
    assert document == canonical(json.loads(document)) == manifest_bytes(FILES, manifest())
    assert _open(folder, keys).digest == f"sha256:{hashlib.sha256(document).hexdigest()}"


def test_the_public_command_verifies_a_bundle(folder: Path, keys: LocalKeys, tmp_path: Path) -> None:
    (tmp_path / "key.pub").write_bytes(keys.bundle_public_pem())
    command = Path(sys.executable).with_name("model_signing")
    args = ["verify", "key", folder, "--signature", folder / SIGNATURE, "--public_key", tmp_path / "key.pub"]
    done = subprocess.run([str(command), *map(str, args)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_file_changed_after_it_was_read_changes_nothing(folder: Path, keys: LocalKeys) -> None:
    """What is handed out is what was hashed: there is no gap between check and use."""
    found = _open(folder, keys)
    shutil.rmtree(folder)
    assert found.codec == b"{}"


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _symlink(path: Path) -> None:
    path.rename(path.parent.parent / "moved")
    path.symlink_to(path.parent.parent / "moved")


def _folder_symlink(path: Path) -> None:
    path.rename(path.parent.parent / "moved")
    path.symlink_to(path.parent.parent / "moved", target_is_directory=True)


def _hard_link(path: Path) -> None:
    os.link(path, path.parent.parent / "second-name")


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("name", "harm", "reason"),
    [
        ("generator.onnx", _flip, "changed"),
        (MANIFEST, _flip, "manifest"),
        (SIGNATURE, _flip, r"again|stranger"),
        ("codec.json", lambda path: path.write_bytes(b""), "changed"),
        ("codec.json", lambda path: path.write_bytes(b"{} "), "oversized|changed"),
        ("codec.json", Path.unlink, "missing"),
        (MANIFEST, Path.unlink, "missing"),
        (SIGNATURE, Path.unlink, "missing"),
        ("extra.bin", lambda path: path.write_bytes(b"x"), "extra"),
        (".gitattributes", lambda path: path.write_bytes(b"x"), "extra"),
        ("policies/more", lambda path: path.write_bytes(b"x"), "extra"),
        ("hollow", Path.mkdir, "extra"),
        (".git", lambda path: path.symlink_to("/"), "extra"),
        ("generator.onnx", _symlink, "symbolic link"),
        (MANIFEST, _symlink, "symbolic link"),
        ("policies", _folder_symlink, "extra"),
        ("generator.onnx", _hard_link, "hard link"),
        (SIGNATURE, _hard_link, "hard link"),
        ("codec.json", _fifo, "not a regular file"),
        (MANIFEST, lambda path: path.write_bytes(b""), "manifest"),
        (MANIFEST, lambda path: path.write_bytes(b"{}"), "manifest"),
    ],
)
def test_whatever_was_done_to_it_is_refused_and_named(
    folder: Path, keys: LocalKeys, name: str, harm: Callable[[Path], object], reason: str
) -> None:
    harm(folder / name)
    with pytest.raises(IntegrityError, match=reason) as caught:
        _open(folder, keys)
    assert name in caught.value.where or name == SIGNATURE
    assert str(folder) in caught.value.where


def test_a_link_to_a_bundle_is_refused_and_nothing_is_not_found(folder: Path, keys: LocalKeys) -> None:
    folder.with_name("link").symlink_to(folder)
    with pytest.raises(IntegrityError, match="symbolic link"):
        _open(folder.with_name("link"), keys)
    with pytest.raises(NotFound):
        _open(folder.with_name("none"), keys)


def test_a_strangers_bundle_is_refused_until_he_is_trusted(folder: Path, tmp_path: Path) -> None:
    mine, theirs = LocalKeys.create(tmp_path / "mine"), LocalKeys.create(tmp_path / "theirs")
    digest = seal(tmp_path / "foreign", FILES, manifest(), theirs)
    with pytest.raises(IntegrityError, match="stranger"):
        _open(tmp_path / "foreign", mine)
    mine.trust("partner", theirs.bundle_public_pem())
    assert _open(tmp_path / "foreign", mine).digest == digest
    with pytest.raises(IntegrityError, match="no trusted key"):
        Bundle.open(folder, [])


def test_an_oversized_file_is_refused_before_it_is_read(folder: Path, keys: LocalKeys) -> None:
    with pytest.raises(IntegrityError, match="oversized"):
        _open(folder, keys, limit=1000)
    with (folder / SIGNATURE).open("r+b") as file:
        file.truncate(1 << 40)  # sparse: a reader that trusts the size would ask for a terabyte
    with pytest.raises(IntegrityError, match="oversized"):
        _open(folder, keys)


def _resigned(folder: Path, keys: LocalKeys, document: bytes, names: dict[str, bytes]) -> None:
    """What a careless holder of the key could sign: any manifest over any names."""
    (folder / MANIFEST).write_bytes(document)
    (folder / SIGNATURE).write_bytes(oms.sign({**names, MANIFEST: document}, keys))


def test_well_signed_manifests_are_still_checked(folder: Path, keys: LocalKeys) -> None:
    true = json.loads((folder / MANIFEST).read_bytes())
    for document, reason in [
        (b"", "JSON"),
        (b"{}", "required"),
        (json.dumps(true, indent=1).encode(), "canonical"),
        (canonical(true | {"more": 1}), "Extra"),
        (canonical(true | {"files": {}}), "not among the files"),
        (canonical(true | {"format": "genward.bundle/2"}), "genward.bundle/1"),
    ]:
        _resigned(folder, keys, document, FILES)
        with pytest.raises(IntegrityError, match=reason):
            _open(folder, keys)


def test_a_name_that_leads_outside_is_refused_even_if_signed(folder: Path, keys: LocalKeys) -> None:
    """`..` cannot be signed by our code; a manifest that lists it does not agree with what is signed."""
    true = json.loads((folder / MANIFEST).read_bytes())
    outside = {"size": 0, "sha256": true["files"]["empty.txt"]["sha256"]}
    (folder.parent / "outside").write_bytes(b"")
    _resigned(folder, keys, canonical(true | {"files": true["files"] | {"../outside": outside}}), FILES)
    with pytest.raises(IntegrityError, match=r"extra|missing") as caught:
        _open(folder, keys)
    assert "../outside" in caught.value.where


@pytest.mark.parametrize("name", ["../x", "/x", "a/../x", "", "a\\b"])
def test_bad_names_are_not_sealed(tmp_path: Path, keys: LocalKeys, name: str) -> None:
    with pytest.raises(IntegrityError):
        seal(tmp_path / "bundle", {**FILES, name: b""}, manifest(), keys)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_bundle_and_reserved_names_are_not_sealed(tmp_path: Path, keys: LocalKeys) -> None:
    with pytest.raises(IntegrityError, match="nothing is signed"):
        seal(tmp_path / "bundle", {}, manifest(), keys)
    for name in (MANIFEST, SIGNATURE):
        with pytest.raises(UsageError):
            seal(tmp_path / "bundle", {**FILES, name: b""}, manifest(), keys)
    with pytest.raises(UsageError):
        seal(tmp_path / "bundle", FILES, manifest(files={}), keys)
    with pytest.raises(UsageError):
        seal(tmp_path / "bundle", FILES, manifest(policy=float("nan")), keys)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"graphs": {"sample": {"file": "other.onnx"}}},
        {"codec": "other.json"},
        {"created": "yesterday"},
        {"dataset": {"digest": "md5:1", "rows": 1}},
        {"dataset": {"digest": DIGEST, "rows": "many"}},
        {"table": {"slots": 1, "candidates": 0, "block": 1}},
        {"family": {"name": "vae"}},
        {"surprise": 1},
        {"parent": "latest"},
    ],
)
def test_a_manifest_that_says_something_else_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(IntegrityError) as caught:
        manifest_bytes(FILES, manifest(**changes))
    assert caught.value.where.startswith(MANIFEST)


def test_the_typed_manifest_cannot_be_changed(folder: Path, keys: LocalKeys) -> None:
    details = validate_manifest(_open(folder, keys).manifest)
    with pytest.raises(ValueError, match="frozen"):
        details.name = "other"  # type: ignore[misc]


def test_sealing_over_another_bundle_is_a_conflict(folder: Path, keys: LocalKeys) -> None:
    before = sorted((path, path.read_bytes()) for path in folder.rglob("*") if path.is_file())
    with pytest.raises(Conflict):
        seal(folder, FILES, manifest(name="other"), keys)
    assert sorted((path, path.read_bytes()) for path in folder.rglob("*") if path.is_file()) == before
    (folder.parent / "file").write_bytes(b"")
    with pytest.raises(Conflict):
        seal(folder.parent / "file", FILES, manifest(), keys)


def test_sealing_over_a_damaged_copy_says_so(folder: Path, keys: LocalKeys) -> None:
    _flip(folder / "generator.onnx")
    with pytest.raises(IntegrityError, match="changed"):
        seal(folder, FILES, manifest(), keys)


def test_many_sealers_of_one_bundle_leave_one(tmp_path: Path, keys: LocalKeys) -> None:
    digests: list[str] = []
    work = [
        threading.Thread(target=lambda: digests.append(seal(tmp_path / "b", FILES, manifest(), keys))) for _ in range(6)
    ]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    assert len(digests) == 6
    assert set(digests) == {_open(tmp_path / "b", keys).digest}
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


CHILD = """
import os, resource, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_bundle import FILES, manifest
from genward.bundle import seal
from genward.errors import Unavailable
from genward.keys import LocalKeys
root, keys = Path(sys.argv[1]), LocalKeys(Path(sys.argv[2]))
"""


def _child(body: str, *args: Path) -> subprocess.CompletedProcess[str]:
    script = CHILD.format(tests=str(Path(__file__).parent)) + body
    return subprocess.run([sys.executable, "-c", script, *map(str, args)], capture_output=True, text=True, check=False)


def test_a_full_disk_leaves_nothing_and_says_what_to_do(tmp_path: Path, keys: LocalKeys) -> None:
    """The kernel refuses to let a file grow, as a full disk does; the same code path serves both."""
    body = """
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    seal(root / "bundle", FILES, manifest(), keys)
except Unavailable as error:
    print(error)
"""
    done = _child(body, tmp_path, keys.folder)
    assert "free some space" in done.stdout, done.stderr
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(Unavailable):
        seal(tmp_path / "file" / "bundle", FILES, manifest(), keys)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_really_full_disk_leaves_nothing(tmp_path: Path, keys: LocalKeys) -> None:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", tmp_path], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no small disk can be mounted here")
    try:
        with pytest.raises(Unavailable, match="No space left"):
            seal(tmp_path / "bundle", {**FILES, "big": bytes(1 << 20)}, manifest(), keys)
        assert list(tmp_path.iterdir()) == []
        seal(tmp_path / "bundle", FILES, manifest(), keys)
    finally:
        subprocess.run(["umount", tmp_path], check=True)


KILLS = """
def killed(at):
    child = os.fork()
    if child:
        return os.WIFSIGNALED(os.waitpid(child, 0)[1])
    count = [0]
    def hook(event, args):
        if event in ("open", "os.mkdir", "os.rename", "os.rmdir", "os.remove", "os.scandir", "fcntl.flock"):
            count[0] += 1
            if count[0] == at:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    seal(root / str(at) / "bundle", FILES, manifest(), keys)
    os._exit(0)

at = 1
while killed(at):
    at += 1
print(at)
"""


def test_a_sealer_killed_at_any_operation_leaves_nothing_or_a_whole_bundle(tmp_path: Path, keys: LocalKeys) -> None:
    """Killed before every single operation on the file system in turn; the next sealer clears what was left."""
    done = _child(KILLS, tmp_path, keys.folder)
    assert done.returncode == 0, done.stderr
    whole = leftovers = 0
    for at in range(1, int(done.stdout)):
        parent = tmp_path / str(at)
        leftovers += any(parent.glob(".sealing-*"))
        if (parent / "bundle").exists():
            whole += 1
            assert dict(_open(parent / "bundle", keys).files) == FILES
        seal(parent / "bundle", FILES, manifest(), keys)
        seal(parent / "other", FILES, manifest(name="other"), keys)
        assert sorted(path.name for path in parent.iterdir()) == ["bundle", "other"]
    assert leftovers > 8
    assert whole >= 1


def test_a_sealer_at_work_is_not_swept_away(tmp_path: Path, keys: LocalKeys) -> None:
    """A temporary folder whose maker lives is locked, so another sealer leaves it alone."""
    alive = tmp_path / ".sealing-alive"
    alive.mkdir()
    body = """
import fcntl
handle = os.open(root / ".sealing-alive", os.O_RDONLY)
fcntl.flock(handle, fcntl.LOCK_EX)
print("locked", flush=True)
sys.stdin.read()
"""
    script = CHILD.format(tests=str(Path(__file__).parent)) + body
    args = [sys.executable, "-c", script, str(tmp_path), str(keys.folder)]
    with subprocess.Popen(args, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "locked\n"
        seal(tmp_path / "one", FILES, manifest(), keys)
        assert alive.exists()
        child.communicate("")
    seal(tmp_path / "two", FILES, manifest(name="two"), keys)
    assert not alive.exists()


def test_a_file_too_large_to_open_is_not_sealed(tmp_path: Path, keys: LocalKeys) -> None:
    with pytest.raises(UsageError, match="could not be opened"):
        seal(tmp_path / "bundle", {**FILES, "huge": bytes(FILE_LIMIT + 1)}, manifest(), keys)
    assert list(tmp_path.iterdir()) == []


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=5,
)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_no_edit_of_a_manifest_raises_anything_but_our_error(data: st.DataObject) -> None:
    document: Any = json.loads(manifest_bytes(FILES, manifest()))
    target = document
    for _ in range(data.draw(st.integers(0, 3))):
        inner = target.values() if isinstance(target, dict) else target
        if children := [value for value in inner if isinstance(value, dict | list) and value]:
            target = data.draw(st.sampled_from(children))
    target[data.draw(st.sampled_from(list(target) if isinstance(target, dict) else [0]))] = data.draw(values)
    with contextlib.suppress(IntegrityError):
        validate_manifest(document)
