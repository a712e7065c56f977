"""The state folder: one version, one configuration, and where everything lies."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from genward import config as configuration
from genward.config import Config
from genward.errors import Conflict, IntegrityError, NotFound, UsageError

FORMAT = 1
_VERSION = "VERSION"


@dataclass(frozen=True)
class State:
    """An open state folder."""

    folder: Path
    config: Config

    @classmethod
    def init(cls, folder: Path, text: str = "") -> State:
        """Make a state folder with `text` as its genward.yaml. Conflict if one is there or it holds other things."""
        if folder.exists() and any(folder.iterdir()):
            raise Conflict("the folder is not empty", where=str(folder), remedy="choose another with --state")
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        (folder / configuration.FILE).write_text(text, encoding="utf-8")
        for name in ("datasets", "candidates", "bundles", "log", "run"):
            (folder / name).mkdir(mode=0o700)
        (folder / _VERSION).write_text(json.dumps({"format": FORMAT}) + "\n", encoding="utf-8")
        return cls.open(folder)

    @classmethod
    def open(cls, folder: Path) -> State:
        """Open a state folder; NotFound, UsageError for a version this program does not read."""
        found = _format(folder)
        if found > FORMAT:
            raise UsageError(f"made by a newer genward (format {found})", where=str(folder), remedy="update genward")
        if found < FORMAT:
            raise UsageError(f"has the older format {found}", where=str(folder), remedy="run `genward upgrade`")
        file = folder / configuration.FILE
        return cls(folder.absolute(), configuration.load(_text(file), where=str(file)))

    @property
    def keys_dir(self) -> Path:
        return self.folder / "keys"

    @property
    def log_dir(self) -> Path:
        return self.folder / "log"

    @property
    def run_dir(self) -> Path:
        return self.folder / "run"

    @property
    def bundles_dir(self) -> Path:
        return self.folder / "bundles"

    @property
    def datasets_dir(self) -> Path:
        return self.folder / "datasets"

    @property
    def candidates_dir(self) -> Path:
        return self.folder / "candidates"

    @property
    def database_url(self) -> str:
        return self.config.database or f"sqlite:///{self.folder / 'registry.db'}"

    @property
    def counters_url(self) -> str:
        return self.config.counters or f"sqlite:///{self.folder / 'counters.db'}"

    @contextmanager
    def locked(self, name: str = "state") -> Iterator[None]:
        """Hold an exclusive lock for an act that only one process may do at a time; Conflict if it is held."""
        self.run_dir.mkdir(exist_ok=True)
        handle = os.open(self.run_dir / f"{name}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError:
            raise Conflict("another process is doing this", where=str(self.folder), remedy="wait for it") from None
        finally:
            os.close(handle)


def upgrade(folder: Path) -> None:
    """Bring an older state folder to this format. Format 1 is the first, so there is nothing to do yet."""
    if _format(folder) > FORMAT:
        raise UsageError("made by a newer genward", where=str(folder), remedy="update genward")


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8") if file.is_file() else ""
    except UnicodeDecodeError:
        raise UsageError("not UTF-8 text", where=str(file), remedy="save it as UTF-8") from None


def _format(folder: Path) -> int:
    try:
        data = json.loads((folder / _VERSION).read_text(encoding="utf-8"))
        return int(data["format"])
    except FileNotFoundError:
        raise NotFound(
            "no state folder", where=str(folder), remedy="run `genward init`, or name one with --state"
        ) from None
    except (OSError, ValueError, KeyError, TypeError):
        raise IntegrityError("the version cannot be read", where=str(folder / _VERSION)) from None
