"""The Bento: built from the wheel, it serves with the wheel and its pinned requirements, and no sources."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
import venv
from collections.abc import Callable, Iterator
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]


def _pins(path: Path) -> dict[str, str]:
    lines = [line.strip() for line in path.read_text().splitlines() if "==" in line and not line.startswith("#")]
    return {canonicalize_name(line.partition("==")[0]): line for line in lines}


def _needed(name: str, extras: frozenset[str], seen: set[Any]) -> Iterator[str]:
    """Names of what a distribution requires, transitively, in this environment."""
    if (name, extras) in seen:
        return
    seen.add((name, extras))
    for text in requires(name) or ():
        found = Requirement(text)
        if found.marker is None or any(found.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield canonicalize_name(found.name)
            yield from _needed(canonicalize_name(found.name), frozenset(found.extras), seen)


def test_the_serving_requirements_are_whole_pinned_and_without_torch() -> None:
    pins, given = _pins(ROOT / "constraints.txt"), _pins(ROOT / "requirements-serve.txt")
    assert all(pins.get(name) == line for name, line in given.items())
    assert set(_needed("genward", frozenset({"serve"}), set())) <= set(given)
    assert not {"torch", "scikit-learn", "pytest"} & set(given)


def _run(*words: str, cwd: Path, **environment: str) -> str:
    done = subprocess.run(words, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _environment(folder: Path, wheel: Path) -> Path:
    """A fresh environment that holds the wheel; the requirements are those installed here, our sources are not."""
    venv.create(folder, with_pip=False)
    packages = next(folder.glob("lib/python*/site-packages"))
    (packages / "requirements.pth").write_text(f"{sysconfig.get_paths()['purelib']}\n")
    _run(sys.executable, "-m", "zipfile", "-e", str(wheel), str(packages), cwd=folder)
    return folder / "bin" / "python"


@pytest.mark.slow
def test_the_bento_builds_and_serves_with_nothing_but_the_wheel(tmp_path: Path, make_world: Callable[[], Any]) -> None:
    project, home = tmp_path / "project", str(tmp_path / "home")
    project.mkdir()
    for name in ("bentofile.yaml", "requirements-serve.txt"):
        shutil.copy(ROOT / name, project)
    build = (sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(project / "dist"), str(ROOT))
    _run(*build, cwd=tmp_path)
    quiet = {"BENTOML_HOME": home, "BENTOML_DO_NOT_TRACK": "True", "OMP_NUM_THREADS": "1"}
    said = _run(sys.executable, "-m", "bentoml", "build", "-o", "tag", cwd=project, **quiet)
    tag = said.strip().rpartition("__tag__:")[2]
    bento = Path(home) / "bentos" / tag.replace(":", "/")
    assert not list((bento / "src").rglob("*.py"))
    (wheel,) = bento.glob("env/python/wheels/genward-*.whl")
    python = _environment(tmp_path / "fresh", wheel)
    where = _run(str(python), "-c", "import genward; print(genward.__file__)", cwd=tmp_path)
    assert where.startswith(str(tmp_path / "fresh"))
    world = make_world()
    _serve(python, tag, tmp_path, world, quiet)


def _serve(python: Path, tag: str, folder: Path, world: Any, quiet: dict[str, str]) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    words = [str(python), "-m", "bentoml", "serve", tag, "--port", port, "--host", "127.0.0.1"]
    environment = {**os.environ, **quiet, "GENWARD_STATE": str(world.folder)}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(words, cwd=folder, env=environment, stdout=log, stderr=log)
    try:
        assert _rows(process, port, world.key).count(b"\n") == 6, (folder / "log").read_text()
    finally:
        process.terminate()
        process.wait(20)


def _rows(process: subprocess.Popen[bytes], port: str, key: str) -> bytes:
    """Five rows as CSV, as soon as the server answers; nothing when it does not within 40 seconds."""
    head = {"Authorization": f"Bearer {key}", "Content-Type": "application/json", "Accept": "text/csv"}
    url = f"http://127.0.0.1:{port}/v1/models/pool:1/generate"
    until = time.monotonic() + 40
    while time.monotonic() < until and process.poll() is None:
        try:
            with urllib.request.urlopen(urllib.request.Request(url, b'{"n": 5}', head), timeout=20) as answer:
                return bytes(answer.read())
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    return b""
