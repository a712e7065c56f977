"""The command line as a process: one line for a mistake, JSON when asked for, exit codes of the design."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

DATA = "density,phase,k\n" + "".join(f"{i % 40 / 10},{'abc'[i % 3]},{i % 7}\n" for i in range(300))


def run(*words: str, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "genward.cli", *words],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=120,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("cli")
    (folder / "alloys.csv").write_text(DATA)
    run("--state", str(folder / "state"), "init")
    run("--state", str(folder / "state"), "dataset", "add", str(folder / "alloys.csv"))
    yield folder / "state"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["train"], 2, "no data set"),
        (["train", "nosuch"], 4, "no data set 'nosuch'"),
        (["train", "--bogus"], 2, "No such option: --bogus"),
        (["bogus"], 2, "No such command 'bogus'"),
        (["generate", "m", "-n", "4x", "--key", "k"], 2, "'-n'"),
        (["train", "alloys", "--option", "lr=["], 2, "cannot be read"),
        (["train", "alloys", "--max-minutes", "nan"], 2, "max_minutes is nan"),
        (["train", "alloys", "--steps", "0"], 2, "steps is 0"),
        (["train", "alloys", "--seed", "-1"], 2, "seed is -1"),
        (["tenant", "add", "default"], 1, "there is a tenant 'default'"),
        (["key", "create", "default", "--days", "nan"], 2, "days is nan"),
        (["key", "create", "default", "--days", "-1"], 2, "days is -1"),
        (["serve", "--workers", "0"], 2, "workers is 0"),
        (["serve", "--port", "99999"], 2, "cannot listen"),
    ],
)
def test_a_mistake_is_one_line_with_a_remedy(state: Path, words: list[str], code: int, said: str) -> None:
    error = run("--state", str(state), *words, code=code).stderr
    assert said in error
    assert error.count("\n") == 1
    assert error.rstrip().endswith(")")
    spoken = json.loads(run("--json", "--state", str(state), *words, code=code).stdout)
    assert said in spoken["what"]
    assert spoken["remedy"]


def test_nothing_of_a_refused_training_is_left(state: Path) -> None:
    for words in (["--seed", "-1"], ["--max-minutes", "nan"], ["--option", "nosuch=1"]):
        run("--state", str(state), "train", "alloys", *words, code=2)
    assert not list((state / "candidates").iterdir())


@pytest.mark.parametrize(
    "words",
    [
        ["doctor"],
        ["dataset", "list"],
        ["dataset", "show", "alloys"],
        ["model", "list"],
        ["model", "candidates"],
        ["policy", "show"],
        ["policy", "list"],
        ["tenant", "list"],
        ["key", "list"],
        ["plugin", "list"],
        ["plugin", "check", "genward"],
    ],
)
def test_json_is_said_wherever_the_flag_stands(state: Path, words: list[str]) -> None:
    json.loads(run("--state", str(state), *words, "--json").stdout)


def test_a_guessed_schema_is_json_on_request(state: Path) -> None:
    found = json.loads(run("dataset", "infer", str(state.parent / "alloys.csv"), "--json").stdout)
    assert [column["name"] for column in found["columns"]] == ["density", "phase", "k"]


def test_odd_columns_are_named_when_a_table_is_added(state: Path) -> None:
    table = state.parent / "constant.csv"
    table.write_text("a,b\n" + "".join(f"{i},1\n" for i in range(100)))
    schema = state.parent / "constant.yaml"
    schema.write_text("columns: [{name: a, kind: integer}, {name: b, kind: integer}]\n")
    said = run("--state", str(state), "dataset", "add", str(table), "--schema", str(schema)).stderr
    assert "warning: b: the same value in every row" in said


def test_an_interrupted_training_names_the_command_that_goes_on(state: Path) -> None:
    words = ["--state", str(state), "train", "alloys", "--family", "vae", "--steps", "100000"]
    process = subprocess.Popen([sys.executable, "-m", "genward.cli", *words], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    process.stderr.readline()  # training has begun
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    command = re.search(r"`genward (train --resume \S+)` goes on", said)
    assert command, said
    again = subprocess.Popen(
        [sys.executable, "-m", "genward.cli", "--state", str(state), *command[1].split()],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert again.stderr is not None
    again.stderr.readline()
    again.send_signal(signal.SIGINT)
    assert "was stopped at step" in again.communicate(timeout=60)[1]


def test_a_policy_takes_two_administrators_with_a_key_each(tmp_path: Path) -> None:
    state = str(tmp_path / "state")
    ann = json.loads(run("--state", state, "init", "--json").stdout)["administrator_key"]
    roles = ("administrator", "consumer")
    bob, eve = (
        json.loads(run("--state", state, "key", "create", "default", "--role", role, "--json").stdout)["key"]
        for role in roles
    )
    (tmp_path / "new.yaml").write_text(
        run("--state", state, "policy", "show").stdout.replace("name: shipped", "name: new")
    )
    propose = ["--state", state, "policy", "propose", str(tmp_path / "new.yaml")]
    assert "two administrators" in run(*propose, code=2).stderr
    run(*propose, "--as", "ann", code=3)
    run(*propose, "--as", eve, code=3)
    digest = json.loads(run(*propose, "--as", ann, "--json").stdout)["digest"]
    run("--state", state, "policy", "activate", digest, code=1)
    approve = ["--state", state, "policy", "approve", digest]
    run(*approve, code=2)
    assert "who proposed" in run(*approve, "--as", ann, code=3).stderr
    run(*approve, GENWARD_AS=bob)
    run("--state", state, "policy", "activate", digest)
    words = ["audit", "search", "--log", f"{state}/log", "--act", "policy.activate", "--json"]
    assert run(*words).stdout.count("policy.activate") == 2  # the shipped one and this; the refused one is no act


def test_doctor_speaks_and_is_content_with_a_fresh_state(state: Path, tmp_path: Path) -> None:
    assert "loaded   families" in run("--state", str(state), "doctor").stdout
    assert "PROBLEM" not in run("--state", str(tmp_path / "none"), "doctor").stdout


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda s: (s / "keys").chmod(0o755), "lets others in"),
        (lambda s: (s / "keys/master").unlink(), "a key is missing"),
        (lambda s: (s / "VERSION").write_text('{"format": 99}'), "newer genward"),
        (lambda s: (s / "VERSION").write_text("x"), "version cannot be read"),
        (lambda s: (s / "VERSION").unlink(), "no state folder"),
        (lambda s: (s / "genward.yaml").write_text("plugins: [genward, nosuch]"), "not installed: nosuch"),
        (lambda s: (s / "genward.yaml").write_text("servr: {}"), "did you mean 'server'?"),
        (lambda s: (s / "genward.yaml").write_bytes(b"\xff\xfe"), "not UTF-8"),
        (lambda s: (s / "registry.db").write_bytes(b"no database" * 999), "the database does not answer"),
        (lambda s: (s / "log/checkpoint").write_bytes(b"junk"), "checkpoint"),
    ],
)
def test_doctor_names_what_is_broken_and_fails(tmp_path: Path, harm: object, said: str) -> None:
    state = tmp_path / "state"
    run("--state", str(state), "init")
    _writer_ends(state)
    harm(state)  # type: ignore[operator]
    found = run("--state", str(state), "doctor", code=1)
    assert any(line.startswith("PROBLEM") and said in line for line in found.stdout.splitlines()), found.stdout


def _acme(folder: Path, module: str) -> str:
    """Install a distribution acme-x that brings commands and nothing else; what PYTHONPATH must be."""
    info = folder / "site/acme_x-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-x\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[genward.commands]\nacme = {module}:app\n")
    return os.pathsep.join([str(folder / "site"), os.environ.get("PYTHONPATH", "")])


def test_a_package_whose_commands_are_broken_is_named_and_stops_nobody(tmp_path: Path) -> None:
    paths, allow = _acme(tmp_path, "acme_x_missing"), "[genward, acme-x]"
    none = str(tmp_path / "none")
    said = run("--state", none, "model", "list", code=4, PYTHONPATH=paths, GENWARD_PLUGINS=allow).stderr
    assert "'acme' of acme-x are broken: ModuleNotFoundError" in said
    words = [sys.executable, "-m", "genward.cli", "--json", "--state", none, "doctor"]
    environment = {**os.environ, "PYTHONPATH": paths, "GENWARD_PLUGINS": allow}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=60, check=False)
    (problem,) = json.loads(done.stdout)["problems"]
    assert "acme-x" in problem
    assert "Traceback" in problem
    assert done.returncode == 1


def test_commands_of_a_package_that_is_not_allowed_are_not_even_imported(tmp_path: Path) -> None:
    """The allow-list is that of the state folder named; `doctor` lists what was left out."""
    paths, state, mark = _acme(tmp_path, "acme_x"), str(tmp_path / "state"), tmp_path / "imported"
    (tmp_path / "site/acme_x.py").write_text(
        f"import pathlib, typer\npathlib.Path({str(mark)!r}).touch()\napp = typer.Typer()\n"
        "@app.command('acme')\ndef acme(): print('hello from acme')\n"
    )
    run("--state", state, "init", PYTHONPATH=paths)
    assert "No such command" in run("--state", state, "acme", code=2, PYTHONPATH=paths).stderr
    found = json.loads(run("--json", f"--state={state}", "doctor", PYTHONPATH=paths).stdout)
    (skipped,) = [plugin for plugin in found["plugins"] if plugin["distribution"] == "acme-x"]
    assert (skipped["status"], "allow-list" in skipped["reason"], mark.exists()) == ("skipped", True, False)
    with (tmp_path / "state/genward.yaml").open("a") as file:
        file.write("plugins: [genward, acme-x]\n")
    assert run("--state", state, "acme", PYTHONPATH=paths).stdout == "hello from acme\n"
    assert run("--state", state, "doctor", PYTHONPATH=paths).returncode == 0
    _writer_ends(tmp_path / "state")


def _writer_ends(state: Path) -> None:
    """The log's writer outlives a lone command; the state is harmed as it would be found on another day."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if b"genward_audit.writer" in words and os.fsencode(state) in words:
            os.kill(int(folder.name), signal.SIGKILL)


def test_keys_under_a_passphrase_are_opened_from_the_environment(tmp_path: Path) -> None:
    state = str(tmp_path / "state")
    run("--state", state, "init", "--passphrase", GENWARD_PASSPHRASE="quite long words")
    assert "default" in run("--state", state, "tenant", "list", GENWARD_PASSPHRASE="quite long words").stdout
    assert "GENWARD_PASSPHRASE" in run("--state", state, "tenant", "list", code=3).stderr
