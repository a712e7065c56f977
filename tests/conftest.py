"""One real release for every test that serves: made once, copied for each test that changes it."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from genward.api import Platform

DATA = Path(__file__).parents[1] / "examples" / "data"
SLOTS = 3000
JSON = "application/json"
NONE: Mapping[str, str] = {}
POLICY = """
apiVersion: genward/v1
kind: Policy
name: tests
access:
  roles:
    generate: [consumer, administrator]
    read: [consumer, auditor]
    audit: [auditor]
quota:
  rows: {per_request: 20000000, per_key_day: 1000000000}
  requests: {per_key_minute: 1000000}
quality: {tstr_drop_max: null, exact_copies_max: null}
"""


@dataclass(frozen=True)
class Sealed:
    """A finished state folder: `pool:1` with 3,000 slots and `open:1` without a pool, both granted to acme."""

    folder: Path
    key: str  # consumer of acme
    auditor: str
    stranger: str  # consumer of another tenant, to which nothing is granted


@dataclass(frozen=True)
class World:
    """A copy of the sealed state, open in this process."""

    folder: Path
    platform: Platform
    key: str
    auditor: str
    stranger: str

    def log(self) -> list[dict[str, Any]]:
        """All entries of the log, oldest first."""
        found = []
        with suppress(Exception):
            while True:
                found.append(json.loads(self.platform.audit.entry(len(found))))
        return found

    def entries(self, request: str) -> list[dict[str, Any]]:
        """The entries of one request."""
        audit = self.platform.audit
        return [json.loads(audit.entry(index)) for index in audit.find(request)]

    def activate(self, text: str) -> str:
        """Make a policy document active."""
        digest = self.platform.propose_policy(text)
        self.platform.approve_policy(digest)
        return self.platform.activate_policy(digest)


@dataclass(frozen=True)
class Reply:
    """What a server answered."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Served:
    """A running server on a state folder, and the same state open in this process."""

    world: World
    process: subprocess.Popen[str]
    host: str
    port: int

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        key: str | None = "",
        headers: Mapping[str, str] = NONE,
    ) -> Reply:
        """One request; `key` None sends none, empty the consumer's; a body that is no bytes is sent as JSON."""
        given = {} if key is None else {"Authorization": f"Bearer {key or self.world.key}"}
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            given["Content-Type"] = JSON
        connection = http.client.HTTPConnection(self.host, self.port, timeout=60)
        try:
            connection.request(method, path, body, {**given, **headers})
            answer = connection.getresponse()
            return Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def rows(
        self, n: int, model: str = "pool:1", *, accept: str = "application/json", key: str = "", **more: Any
    ) -> Reply:
        """Ask for rows."""
        body = {"n": n, **{"from" if k == "start" else k: v for k, v in more.items()}}
        return self.ask("POST", f"/v1/models/{model}/generate", body, key=key, headers={"Accept": accept})


def _processes_of(folder: Path) -> list[int]:
    """Processes whose command line or environment names a state folder: the log's writer, a server and its workers."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with suppress(OSError):
            if str(folder).encode() in (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes():
                found.append(int(entry.name))
    return found


def kill_all(folder: Path) -> None:
    """Kill -9 whatever still works on a state folder."""
    until = time.monotonic() + 10
    while (left := _processes_of(folder)) and time.monotonic() < until:
        for pid in left:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def short_folder() -> Path:
    """A folder whose name leaves room for the path of a Unix socket (108 bytes)."""
    return Path(tempfile.mkdtemp(prefix="gw", dir="/tmp"))


@pytest.fixture(scope="session")
def sealed() -> Iterator[Sealed]:
    """Train for a moment on real alloys and release twice; some 20 seconds, once a session."""
    base = short_folder()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    platform, _ = Platform.init(base / "s", tenant="acme", single_operator=True)
    platform.add_tenant("other")
    digest = platform.propose_policy(POLICY)
    platform.approve_policy(digest)
    platform.activate_policy(digest)
    dataset = platform.add_dataset(DATA / "mpea_alloys.csv", schema=DATA / "mpea_alloys.yaml")
    candidate = platform.train(dataset.name, family="vae", steps=60)
    for name, slots in (("pool", SLOTS), ("open", None)):
        platform.release(candidate.id, name, slots=slots, grant=["acme"], evaluate_rows=300)
    keys = [platform.create_key(t, [r]) for t, r in (("acme", "consumer"), ("acme", "auditor"), ("other", "consumer"))]
    platform.close()
    kill_all(base)  # the log's writer: a copy must not be taken under its hands
    yield Sealed(base / "s", *keys)
    shutil.rmtree(base, ignore_errors=True)


@pytest.fixture(scope="session")
def make_world(sealed: Sealed) -> Iterator[Callable[[], World]]:
    """Make copies of the sealed state; whatever works on them is ended with the session at the latest."""
    made: list[World] = []

    def make(config: str = "") -> World:
        folder = short_folder() / "s"
        shutil.copytree(sealed.folder, folder, ignore=shutil.ignore_patterns("*.sock"))
        with (folder / "genward.yaml").open("a") as file:
            file.write(config)
        world = World(folder, Platform.open(folder), sealed.key, sealed.auditor, sealed.stranger)
        made.append(world)
        return world

    yield make
    for world in made:
        world.platform.close()
        kill_all(world.folder)
        shutil.rmtree(world.folder.parent, ignore_errors=True)


@pytest.fixture
def world(make_world: Callable[[], World]) -> Iterator[World]:
    """A copy of the sealed state for one test."""
    found = make_world()
    yield found
    found.platform.close()
    kill_all(found.folder)


@pytest.fixture(scope="session")
def start_server() -> Iterator[Callable[..., Served]]:
    """Start real servers, by the command a person would type."""
    started: list[Served] = []

    def start(world: World, *words: str) -> Served:
        command = [sys.executable, "-m", "genward.cli", "--state", str(world.folder), "serve", "--port", "0", *words]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        lines = []
        for line in process.stdout or ():
            lines.append(line)
            if line.startswith("serving at http://"):
                host, _, port = line.split("http://")[1].strip().partition(":")
                started.append(Served(world, process, host, int(port)))
                return started[-1]
        process.wait()
        raise AssertionError("".join(lines))

    yield start
    for served in started:
        stop_server(served)


def stop_server(served: Served) -> None:
    """Ask a server to end; it has to within seconds."""
    if served.process.poll() is None:
        served.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            served.process.wait(20)
    kill_all(served.world.folder)
    served.process.wait()
    if served.process.stdout:
        served.process.stdout.close()


@pytest.fixture(scope="session")
def server(make_world: Callable[[], World], start_server: Callable[..., Served]) -> Served:
    """One server for all tests that leave it as they found it."""
    return start_server(make_world())


@pytest.fixture(scope="session")
def processes_of() -> Callable[[Path], list[int]]:
    """Process ids of whatever works on a state folder."""
    return _processes_of


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """A real PostgreSQL server; its address without a database."""
    folder = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))
    with warnings.catch_warnings():  # of the wheel's own dependencies
        warnings.simplefilter("ignore")
        import pgserver

        with pytest.MonkeyPatch.context() as patch:  # as root the wheel wants `useradd`, which is not in every PATH
            patch.setenv("PATH", os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"]))
            server = pgserver.get_server(folder, cleanup_mode="delete")
    yield str(server.get_uri()).replace("postgresql://", "postgresql+psycopg://")
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def postgres_url(postgres: str) -> Iterator[str]:
    """A fresh database on that server."""
    import uuid

    from sqlalchemy import create_engine, text
    from sqlalchemy.engine import make_url

    name = f"t{uuid.uuid4().hex}"
    engine = create_engine(postgres, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    yield make_url(postgres).set(database=name).render_as_string(hide_password=False)
    with engine.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    engine.dispose()
