"""A backup restores to a state whose log goes on and whose receipts still prove."""

from __future__ import annotations

import tarfile
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from genward.api import Platform
from genward.backup import backup, restore
from genward.errors import Conflict, IntegrityError, NotFound


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[Platform]:
    found, _ = Platform.init(tmp_path / "s", tenant="acme", single_operator=True)
    yield found
    found.close()


def _opened(folder: Path) -> Platform:
    return Platform.open(folder)


def test_a_backup_taken_under_load_goes_on_where_it_stood(platform: Platform, tmp_path: Path) -> None:
    stop = threading.Event()
    wrote: list[int] = []

    def load() -> None:
        while not stop.is_set():
            wrote.append(platform.record("test.load", n=len(wrote)))

    thread = threading.Thread(target=load)
    thread.start()
    try:
        archives = [backup(platform.state, tmp_path / f"{i}.tar", keys=True) for i in range(4)]
    finally:
        stop.set()
        thread.join()
    for place, archive in enumerate(archives):
        restore(archive, tmp_path / f"r{place}")
        again = _opened(tmp_path / f"r{place}")
        size = again.record("test.after")
        assert size >= 5
        assert again.registry.tenants() == ["acme"]
        assert again.audit.entry(0) == platform.audit.entry(0)
        again.close()
    assert len(wrote) > 4


def test_keys_travel_only_when_asked(platform: Platform, tmp_path: Path) -> None:
    with tarfile.open(backup(platform.state, tmp_path / "a.tar")) as archive:
        assert not [name for name in archive.getnames() if name.startswith("keys")]
    with_keys = backup(platform.state, tmp_path / "b.tar", keys=True)
    assert with_keys.stat().st_mode & 0o777 == 0o600


def test_a_large_table_is_copied_in_little_memory(platform: Platform, tmp_path: Path) -> None:
    """A file of 200 MB goes into the archive and back, and neither way holds it."""
    large = platform.state.datasets_dir / "large"
    with large.open("wb") as file:
        for i in range(200):
            file.write(bytes([i]) * (1 << 20))
    tracemalloc.start()
    archive = backup(platform.state, tmp_path / "a.tar")
    restore(archive, tmp_path / "r")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "r/datasets/large").stat().st_size == 200 << 20
    assert peak < 100 << 20


def test_nothing_is_overwritten(platform: Platform, tmp_path: Path) -> None:
    archive = backup(platform.state, tmp_path / "a.tar")
    with pytest.raises(Conflict):
        backup(platform.state, archive)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(Conflict):
        restore(archive, tmp_path / "full")
    with pytest.raises(NotFound):
        restore(tmp_path / "none.tar", tmp_path / "r")


def test_a_changed_archive_is_refused_and_leaves_nothing(platform: Platform, tmp_path: Path) -> None:
    archive = backup(platform.state, tmp_path / "a.tar")
    data = bytearray(archive.read_bytes())
    at = data.index(b"UnsafeSingle" if b"UnsafeSingle" in data else b"unsafe_single")
    data[at] ^= 1
    archive.write_bytes(bytes(data))
    with pytest.raises(IntegrityError):
        restore(archive, tmp_path / "r")
    assert not (tmp_path / "r").exists()
    (tmp_path / "junk.tar").write_bytes(b"junk" * 1000)
    with pytest.raises(IntegrityError):
        restore(tmp_path / "junk.tar", tmp_path / "r")
