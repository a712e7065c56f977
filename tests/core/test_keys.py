"""Keys: who may read them, what derives from them, and what is said when they are damaged."""

from __future__ import annotations

import base64
import json
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.hmac import HMAC

from genward.errors import Conflict, GenwardError, IntegrityError, NotFound, Unauthenticated, Unavailable, UsageError
from genward.keys import LocalKeys, key_id, public_pem

VECTORS = Path(__file__).parents[2] / "../shared/vectors/ed25519/ed25519vectors.json"
PASSPHRASE = "correct horse battery staple"


@pytest.fixture
def keys(tmp_path: Path) -> LocalKeys:
    return LocalKeys.create(tmp_path / "keys")


def _hmac(key: bytes, data: bytes) -> bytes:
    mac = HMAC(key, hashes.SHA256())
    mac.update(data)
    return mac.finalize()


def test_derivation_is_rfc_5869_of_the_stored_master(keys: LocalKeys) -> None:
    master = base64.b64decode(json.loads((keys.folder / "master").read_bytes())["key"])
    pseudo_random_key = _hmac(bytes(32), master)
    first = _hmac(pseudo_random_key, b"pool/sha256:ab" + b"\x01")
    second = _hmac(pseudo_random_key, first + b"pool/sha256:ab" + b"\x02")
    assert keys.derive("pool/sha256:ab", 48) == (first + second)[:48]
    assert keys.pepper == keys.derive("api/pepper", 32)
    assert keys.derive("walk/a/b") != keys.derive("walk/a/c")


@pytest.mark.parametrize(("label", "length"), [("", 16), ("a", 0), ("a", 8161)])
def test_a_key_without_label_or_length_is_refused(keys: LocalKeys, label: str, length: int) -> None:
    with pytest.raises(UsageError):
        keys.derive(label, length)


def test_keys_open_again_the_same(keys: LocalKeys) -> None:
    again = LocalKeys(keys.folder)
    assert again.derive("a") == keys.derive("a")
    assert again.bundle_public_pem() == keys.bundle_public_pem() == (keys.folder / "bundle.pub").read_bytes()


def test_the_bundle_key_signs_p256_sha256(keys: LocalKeys) -> None:
    public = serialization.load_pem_public_key(keys.bundle_public_pem())
    assert isinstance(public, ec.EllipticCurvePublicKey)
    assert isinstance(public.curve, ec.SECP256R1)
    public.verify(keys.sign_bundle(b"message"), b"message", ec.ECDSA(hashes.SHA256()))


def test_the_log_key_is_ed25519_in_pkcs8(keys: LocalKeys) -> None:
    log = serialization.load_pem_private_key(keys.log_key_file.read_bytes(), None)
    assert isinstance(log, ed25519.Ed25519PrivateKey)


def test_everything_is_private_from_its_first_moment(keys: LocalKeys) -> None:
    assert keys.folder.stat().st_mode & 0o777 == 0o700
    files = [path for path in keys.folder.rglob("*") if path.is_file()]
    assert {path.name for path in files} == {"master", "bundle.pem", "bundle.pub", "log.pem"}
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in files)
    assert [path.name for path in keys.folder.parent.iterdir()] == ["keys"]


@pytest.mark.parametrize("name", ["", "master", "bundle.pem", "bundle.pub", "log.pem"])
@pytest.mark.parametrize("wider", [0o040, 0o004, 0o001])
def test_a_wider_mode_is_refused_with_a_remedy(keys: LocalKeys, name: str, wider: int) -> None:
    path = keys.folder / name
    path.chmod(path.stat().st_mode | wider)
    with pytest.raises(IntegrityError, match="chmod") as caught:
        LocalKeys(keys.folder)
    assert str(path) in caught.value.where


def test_keys_are_never_made_over_others(keys: LocalKeys) -> None:
    before = (keys.folder / "master").read_bytes()
    with pytest.raises(Conflict):
        LocalKeys.create(keys.folder)
    assert (keys.folder / "master").read_bytes() == before


@pytest.mark.parametrize("name", ["master", "bundle.pem", "log.pem"])
def test_a_missing_file_is_named(keys: LocalKeys, name: str) -> None:
    (keys.folder / name).unlink()
    with pytest.raises(NotFound, match=name):
        LocalKeys(keys.folder)


def test_no_folder_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="genward init"):
        LocalKeys(tmp_path / "none")


@pytest.mark.parametrize("name", ["master", "bundle.pem"])
@pytest.mark.parametrize("passphrase", [None, PASSPHRASE])
def test_every_truncation_is_a_clear_error(tmp_path: Path, name: str, passphrase: str | None) -> None:
    keys = LocalKeys.create(tmp_path / "keys", passphrase)
    path = keys.folder / name
    whole = path.read_bytes()
    for length in range(0, len(whole) - 1, 37):
        path.write_bytes(whole[:length])
        with pytest.raises((IntegrityError, Unauthenticated)) as caught:
            LocalKeys(keys.folder, passphrase).sign_bundle(b"")
        assert caught.value.where == str(path)
        assert caught.value.remedy


def test_a_changed_master_is_noticed(keys: LocalKeys) -> None:
    path = keys.folder / "master"
    stored = json.loads(path.read_bytes())
    path.write_text(json.dumps(stored | {"key": base64.b64encode(bytes(32)).decode()}))
    with pytest.raises(IntegrityError, match="damaged"):
        LocalKeys(keys.folder)
    path.write_text(json.dumps(stored | {"v": 2}))
    with pytest.raises(IntegrityError, match="upgrade"):
        LocalKeys(keys.folder)


def test_a_passphrase_guards_every_private_key(tmp_path: Path) -> None:
    keys = LocalKeys.create(tmp_path / "keys", PASSPHRASE)
    assert LocalKeys(keys.folder, PASSPHRASE).derive("a") == keys.derive("a")
    assert all(b"ENCRYPTED" in (keys.folder / name).read_bytes() for name in ("bundle.pem", "log.pem"))
    for wrong in (None, "", "correct horse"):
        with pytest.raises(Unauthenticated, match="passphrase"):
            LocalKeys(keys.folder, wrong)
    log = serialization.load_pem_private_key(keys.log_key_file.read_bytes(), PASSPHRASE.encode())
    assert isinstance(log, ed25519.Ed25519PrivateKey)


def test_a_passphrase_is_not_believed_where_none_was_set(keys: LocalKeys, tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="without one"):
        LocalKeys(keys.folder, PASSPHRASE)
    with pytest.raises(UsageError):
        LocalKeys.create(tmp_path / "other", "")


def test_a_link_in_place_of_a_key_is_refused(keys: LocalKeys, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes((keys.folder / "master").read_bytes())
    (tmp_path / "elsewhere").chmod(0o600)
    (keys.folder / "master").unlink()
    (keys.folder / "master").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(IntegrityError, match="link"):
        LocalKeys(keys.folder)


def test_the_trust_store_holds_ours_first_and_others_once(keys: LocalKeys, tmp_path: Path) -> None:
    other = LocalKeys.create(tmp_path / "other").bundle_public_pem()
    path = keys.trust("partner-1", other)
    assert keys.trusted() == (keys.bundle_public_pem(), other)
    with pytest.raises(Conflict):
        keys.trust("partner-1", other)
    for name in ("../x", "", "a/b", "."):
        with pytest.raises(UsageError):
            keys.trust(name, other)
    path.chmod(0o644)
    with pytest.raises(IntegrityError, match="chmod"):
        keys.trusted()


def _spki(point: bytes, keys: LocalKeys) -> bytes:
    """A P-256 SubjectPublicKeyInfo around any 65 bytes of point."""
    der = serialization.load_pem_public_key(keys.bundle_public_pem()).public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    body = base64.encodebytes(der[:-65] + point)
    return b"-----BEGIN PUBLIC KEY-----\n" + body + b"-----END PUBLIC KEY-----\n"


@pytest.mark.parametrize("point", [b"\x04" + bytes(64), b"\x04" + b"\x01" * 64, b"\x04" + b"\xff" * 64, bytes(65)])
def test_points_off_the_curve_are_refused(keys: LocalKeys, point: bytes) -> None:
    with pytest.raises(IntegrityError):
        keys.trust("bad", _spki(point, keys))
    assert not (keys.folder / "trusted/bad.pub").exists()


def test_keys_that_cannot_sign_bundles_are_refused() -> None:
    curve = ec.generate_private_key(ec.SECP256K1()).public_key()
    pem = curve.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    for data in (pem, b"", b"garbage", b"-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----\n"):
        with pytest.raises(IntegrityError):
            public_pem(data)


@pytest.mark.skipif(not VECTORS.exists(), reason="the published vectors are not beside this checkout")
def test_no_published_edge_case_of_ed25519_enters_the_trust_store(keys: LocalKeys) -> None:
    """914 cases, 122 of them with a low-order key: none signs bundles, so none gets in."""
    encodings = {bytes.fromhex(case["key"]) for case in json.loads(VECTORS.read_bytes())}
    prefix = bytes.fromhex("302a300506032b6570032100")
    for raw in encodings:
        body = base64.encodebytes(prefix + raw)
        with pytest.raises(IntegrityError):
            keys.trust("edge", b"-----BEGIN PUBLIC KEY-----\n" + body + b"-----END PUBLIC KEY-----\n")


def test_a_key_id_is_the_digest_of_its_one_pem_form(keys: LocalKeys) -> None:
    loose = keys.bundle_public_pem().replace(b"\n", b"\r\n")
    assert key_id(public_pem(loose)) == key_id(keys.bundle_public_pem())


def test_a_maker_killed_at_any_file_leaves_no_keys(tmp_path: Path) -> None:
    """Keys appear by one rename: whatever was left half made is never taken for keys."""
    script = "\n".join(
        [
            "import os, signal, sys, pathlib",
            "from genward.keys import LocalKeys",
            "folder, at = pathlib.Path(sys.argv[1]), int(sys.argv[2])",
            "count = [0]",
            "def hook(event, args):",
            "    if event in ('open', 'os.mkdir', 'os.rename'):",
            "        count[0] += 1",
            "        if count[0] == at: os.kill(os.getpid(), signal.SIGKILL)",
            "sys.addaudithook(hook)",
            "LocalKeys.create(folder)",
        ]
    )
    for at in (2, 4, 7):
        folder = tmp_path / str(at) / "keys"
        done = subprocess.run([sys.executable, "-c", script, str(folder), str(at)], check=False, capture_output=True)
        assert done.returncode == -signal.SIGKILL
        assert not folder.exists()
        assert LocalKeys.create(folder).derive("a")


def test_every_error_is_one_of_ours(keys: LocalKeys) -> None:
    for content in (b"[]", b"null", b'{"v":1,"kdf":[]}', b'{"v":1,"kdf":"none","key":7}', b"\xff\xfe"):
        (keys.folder / "master").write_bytes(content)
        with pytest.raises(GenwardError):
            LocalKeys(keys.folder)


def test_where_nothing_can_be_written_it_is_said(tmp_path: Path, keys: LocalKeys) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(Unavailable, match="writable"):
        LocalKeys.create(tmp_path / "file" / "keys")
    (keys.folder / "trusted").rmdir()
    (keys.folder / "trusted").symlink_to(tmp_path / "gone")
    with pytest.raises((Conflict, Unavailable)):
        keys.trust("partner", keys.bundle_public_pem())
    with pytest.raises(IntegrityError, match="link"):
        LocalKeys(keys.folder)


def test_of_many_makers_at_once_one_wins_whole(tmp_path: Path) -> None:
    made: list[LocalKeys | Conflict] = []

    def make() -> None:
        try:
            made.append(LocalKeys.create(tmp_path / "keys"))
        except Conflict as conflict:
            made.append(conflict)

    work = [threading.Thread(target=make) for _ in range(5)]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    winners = [keys for keys in made if isinstance(keys, LocalKeys)]
    assert (len(made), len(winners)) == (5, 1)
    assert LocalKeys(tmp_path / "keys").derive("a") == winners[0].derive("a")
    assert [path.name for path in tmp_path.iterdir()] == ["keys"]
