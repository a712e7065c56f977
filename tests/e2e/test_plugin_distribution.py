"""An out-of-tree plugin: built as a wheel, installed in an environment of its own, trained, released, served."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def _run(*command: str, env: dict[str, str] | None = None, ok: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)
    assert (done.returncode == 0) is ok, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with our wheel and the example's; third-party packages come from the one that runs this."""
    folder = tmp_path_factory.mktemp("stranger")
    wheels = folder / "wheels"
    for source in (ROOT, ROOT / "examples" / "plugin"):
        _run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(wheels), str(source))
    venv.create(folder / "env", with_pip=False, symlinks=True)
    (site,) = (folder / "env" / "lib").glob("python*/site-packages")
    _run(
        sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site),
        *map(str, wheels.glob("*.whl")),
    )  # fmt: skip
    (site / "third_party.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return folder


@pytest.fixture(scope="module")
def genward(home: Path) -> Iterator[object]:
    """The command line of that environment, on a state folder that allows the plugin."""
    env = {"PATH": os.environ["PATH"], "HOME": str(home), "GENWARD_STATE": str(home / "state"), "OMP_NUM_THREADS": "1"}

    def call(*words: str, ok: bool = True, text: bool = False) -> Any:
        python = str(home / "env" / "bin" / "python")
        done = _run(python, "-m", "genward.cli", "--json", *words, env=env, ok=ok)
        return done.stderr if text else json.loads(done.stdout)

    call("init", "--tenant", "acme", "--unsafe-single-operator")
    (home / "state" / "genward.yaml").write_text("plugins: [genward, genward-example]\nunsafe_single_operator: true\n")
    yield call


@contextmanager
def _served(python: str, env: dict[str, str]) -> Iterator[str]:
    """The address of a server of that environment."""
    command = [python, "-m", "genward.cli", "serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as process:
        try:
            line = process.stdout.readline()
            assert "http://" in line
            yield line.split()[-1]
        finally:
            process.terminate()


def test_the_package_comes_from_the_wheel_not_from_the_checkout(home: Path) -> None:
    python = str(home / "env" / "bin" / "python")
    where = _run(python, "-c", "import genward; print(genward.__file__)").stdout
    assert str(home) in where


def test_a_stranger_s_family_is_trained_released_and_answers(home: Path, genward) -> None:
    data = ROOT / "examples" / "data"
    genward("dataset", "add", str(data / "mpea_alloys.csv"), "--schema", str(data / "mpea_alloys.yaml"), "--name", "a")
    plugins = {row["name"]: row for row in genward("plugin", "list")}
    assert plugins["example"]["status"] == "loaded"
    candidate = genward("train", "a", "--family", "gaussian", "--steps", "200")["candidate"]
    released = genward("release", candidate, "--name", "alloys", "--slots", "2000", "--grant", "acme")
    assert released["release"] == "alloys:1"
    key = genward("key", "create", "acme", "--role", "consumer")["key"]
    out = home / "rows.csv"
    env = {"GENWARD_STATE": str(home / "state"), "PATH": os.environ["PATH"], "HOME": str(home)}
    python = str(home / "env" / "bin" / "python")
    _run(python, "-m", "genward.cli", "generate", "alloys", "-n", "7", "--key", str(key), "-o", str(out), env=env)
    assert len(out.read_text().splitlines()) == 8
    with _served(python, env) as url:
        answer = genward("generate", "alloys", "-n", "3", "--key", str(key), "--url", url, "-o", str(out), text=True)
        assert "rows=3" in answer


def test_a_stranger_s_policy_is_obeyed(home: Path, genward) -> None:
    text = (ROOT / "policies" / "genward_policies" / "default.yaml").read_text()
    (home / "policy.yaml").write_text(text + "\nembargo: {until: 2100-01-01T00:00:00Z}\n")
    digest = genward("policy", "propose", str(home / "policy.yaml"))["digest"]
    genward("policy", "approve", digest)
    genward("policy", "activate", digest)
    key = genward("key", "create", "acme", "--role", "consumer")["key"]
    error = genward("generate", "alloys", "-n", "1", "--key", str(key), ok=False)
    assert error["error"] == "denied"


def test_a_written_plugin_passes_its_own_checks(home: Path, tmp_path: Path) -> None:
    _run(sys.executable, "-m", "genward.cli", "plugin", "new", "acme-flows", "--into", str(tmp_path))
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "acme-flows" / "src")}
    _run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path / "acme-flows"), env=env)
