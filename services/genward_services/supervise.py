"""`genward serve`: the log's writer and the server, started together, watched, and stopped together."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from types import FrameType

from genward.api import Platform
from genward.contracts import AuditSink
from genward.errors import Unavailable, UsageError
from genward.state import State
from genward_services.compose import Log

READY_SECONDS = 60.0
_SERVICE = "genward_services.gateway:Gateway"


def run(state: Path, *, host: str | None, port: int | None, workers: int | None) -> None:
    """Serve until interrupted; Unavailable when the server does not come up."""
    platform = Platform.open(state)
    server = platform.state.config.server
    if workers is not None and workers < 1:
        raise UsageError(f"workers is {workers}", remedy="give 1 or more")
    address = host or server.host
    free = _port(address, server.port if port is None else port)
    _ = platform.authenticator  # an issuer's keys can be read, or not and why, before anything listens
    platform.audit.vkey()  # and so for the writer
    with suppress(Unavailable):  # once, and not by each worker while somebody waits for it to be ready
        platform.counters.catch_up(platform.audit)
    process = _start(platform.state, address, free, workers or server.workers)
    for number in (signal.SIGINT, signal.SIGTERM):  # a background shell starts us with SIGINT ignored
        signal.signal(number, _interrupt)
    try:
        _wait_ready(process, f"http://{address}:{free}")
        print(f"serving at http://{address}:{free}", flush=True)
        while process.poll() is None:
            _watch(platform.audit)
            time.sleep(0.5)
        raise Unavailable("the server ended by itself", remedy="its last words are above")
    except KeyboardInterrupt:
        print("stopping", flush=True)
    finally:
        _stop(process)
        platform.close()


def _watch(audit: AuditSink) -> None:
    """Keep the log's writer alive. One that cannot start is no reason to end: requests get 503 until it can."""
    if isinstance(audit, Log):
        with suppress(Unavailable):
            audit.watch()


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _port(host: str, port: int) -> int:
    """The port, or any free one for 0; UsageError when nobody can listen there, before somebody else answers for us."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            return int(probe.getsockname()[1])
    except (OSError, OverflowError) as error:
        what = getattr(error, "strerror", None) or str(error)
        remedy = "choose another with --host and --port; 0 is any free port"
        raise UsageError(f"cannot listen: {what}", where=f"{host}:{port}", remedy=remedy) from None


def _start(state: State, host: str, port: int, workers: int) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "GENWARD_STATE": str(state.folder),
        "GENWARD_SERVER__MAX_BODY": str(state.config.server.max_body),
        "GENWARD_SERVER__MAX_UPLOAD": str(state.config.server.max_upload),
        "BENTOML_DO_NOT_TRACK": "True",
        "BENTOML_HOME": str(state.run_dir / "bentoml"),
        "OMP_NUM_THREADS": "1",
    }
    words = [sys.executable, "-m", "bentoml", "serve", _SERVICE, "--host", host, "--port", str(port)]
    words += ["--api-workers", str(workers)]
    with (state.run_dir / "server.log").open("ab") as log:
        return subprocess.Popen(words, stdout=log, stderr=log, env=environment, start_new_session=True)


def _wait_ready(process: subprocess.Popen[bytes], url: str) -> None:
    until = time.monotonic() + READY_SECONDS
    while time.monotonic() < until:
        if process.poll() is not None:
            raise Unavailable("the server did not start", remedy="see run/server.log in the state folder")
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=2):  # noqa: S310 - our own address
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise Unavailable("the server is not ready in time", remedy="see run/server.log in the state folder")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ask nicely, then not."""
    for number, patience in ((signal.SIGTERM, 15.0), (signal.SIGKILL, 5.0)):
        if process.poll() is None:
            os.killpg(process.pid, number)
            try:
                process.wait(patience)
            except subprocess.TimeoutExpired:
                continue
