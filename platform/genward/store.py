"""A database by SQLAlchemy URL: one way to open it, to transact, and to notice that somebody else changed it."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import create_engine, event, exc, select
from sqlalchemy.engine import Connection, Engine, make_url

from genward.errors import Conflict, GenwardError, Unavailable, UsageError

if TYPE_CHECKING:
    from sqlalchemy import Table

POLL_SECONDS = 1.0  # how often a worker asks PostgreSQL whether something changed
_MIGRATIONS = Path(__file__).parent / "migrations"


class Store:
    """An open database. SQLite runs in WAL mode and takes its write lock at the start of a transaction."""

    def __init__(self, url: str, *, durable: bool = True) -> None:
        self.url = url
        try:
            self.sqlite = make_url(url).get_backend_name() == "sqlite"
            self.engine = _engine(url, self.sqlite, durable)
        except (exc.ArgumentError, exc.NoSuchModuleError, ModuleNotFoundError) as error:
            raise UsageError(f"the database URL cannot be used: {error}", where=_public(url)) from None

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """A transaction. Errors of the database become ours: Conflict on a race, Unavailable when it is away."""
        try:
            with self.engine.begin() as connection:
                yield connection
        except GenwardError:
            raise
        except exc.IntegrityError as error:
            raise Conflict("somebody else wrote the same", where=_line(error), remedy="do it again") from None
        except exc.SQLAlchemyError as error:
            raise Unavailable(f"the database does not answer: {_line(error)}", where=_public(self.url)) from None

    def close(self) -> None:
        self.engine.dispose()


class Watch:
    """Says cheaply whether anybody committed to a store since the last look.

    SQLite: `PRAGMA data_version` of a connection of its own, some microseconds. Elsewhere: a counter that every writer
    moves, read at most once a second.
    """

    def __init__(self, store: Store, counter: Table) -> None:
        self._store, self._counter = store, counter
        self._lock = threading.Lock()
        self._looked, self._value = 0.0, 0
        self._own = _plain(store) if store.sqlite else None

    def value(self) -> int:
        """A number that is different after a change; Unavailable when the store cannot be asked."""
        with self._lock:
            return self._data_version(self._own) if self._own is not None else self._polled()

    def soon(self) -> None:
        """Look again at the next call, for one's own writes."""
        self._looked = 0.0

    def close(self) -> None:
        if self._own is not None:
            self._own.close()

    def _data_version(self, connection: sqlite3.Connection) -> int:
        try:
            return int(connection.execute("PRAGMA data_version").fetchone()[0])
        except sqlite3.Error as error:
            raise Unavailable(f"the database does not answer: {error}", where=_public(self._store.url)) from None

    def _polled(self) -> int:
        if time.monotonic() - self._looked > POLL_SECONDS:
            with self._store.begin() as connection:
                self._value = int(connection.execute(select(self._counter.c.value)).scalar_one())
            self._looked = time.monotonic()
        return self._value


def migrate(store: Store) -> None:
    """Bring the registry's tables to the newest revision."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    with store.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def _engine(url: str, sqlite: bool, durable: bool) -> Engine:
    if not sqlite:
        return create_engine(url, pool_pre_ping=True, pool_size=4)
    engine = create_engine(url, connect_args={"timeout": 30})
    synchronous = "FULL" if durable else "NORMAL"

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # SQLAlchemy's transactions, not the driver's
        for pragma in ("journal_mode=WAL", f"synchronous={synchronous}", "foreign_keys=ON", "busy_timeout=30000"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _immediate(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def _plain(store: Store) -> sqlite3.Connection:
    return sqlite3.connect(store.engine.url.database or ":memory:", check_same_thread=False, timeout=30)


def _public(url: str) -> str:
    """The URL without its password."""
    try:
        return make_url(url).render_as_string(hide_password=True)
    except exc.ArgumentError:
        return "database"


def _line(error: Exception) -> str:
    return str(getattr(error, "orig", None) or error).splitlines()[0]
