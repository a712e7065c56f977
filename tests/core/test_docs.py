"""Documents are held against the code: every hook is explained and tested, every command and file named exists."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from genward import hookspecs

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
HOOKS = {
    name: function.__code__.co_varnames[: function.__code__.co_argcount]
    for name, function in vars(hookspecs).items()
    if hasattr(function, f"{hookspecs.PROJECT}_spec")
}


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_is_documented_with_its_arguments(hook: str) -> None:
    page = (ROOT / "docs" / "plugins.md").read_text()
    assert f"`{hook}({', '.join(HOOKS[hook])})`" in page


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_has_a_test_that_implements_it(hook: str) -> None:
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert re.search(rf"def {hook}\(", tests), f"no test implements {hook}"


def _commands(text: str) -> set[str]:
    """`genward ...` lines of indented code blocks."""
    return {match.group(1) for match in re.finditer(r"^ {4}genward ([a-z].*?)(?: {2,}#.*)?$", text, re.MULTILINE)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_in_a_page_exists(page: Path) -> None:
    from typer.main import get_command

    from genward.cli import command_line

    root = get_command(command_line())
    for line in _commands(page.read_text()):
        command: Any = root
        for word in line.split():
            if not hasattr(command, "commands"):
                break
            assert word in command.commands, f"{page.name}: genward {line}: no command {word!r}"
            command = command.commands[word]
        options = {name for parameter in command.params for name in [*parameter.opts, *parameter.secondary_opts]}
        used = {option.split("=")[0] for option in re.findall(r"(?<=\s)--?[a-z][a-z-]*", line)}
        assert used <= options, f"{page.name}: genward {line}: no option {used - options}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_a_page_names_is_there(page: Path) -> None:
    roots = ("platform/", "plugins/", "policies/", "services/", "audit/", "docs/", "examples/", "benchmarks/", "tests/")
    for name in re.findall(r"`([\w./-]+)`", page.read_text()):
        if name.startswith(roots):
            assert (ROOT / name).exists(), f"{page.name} names {name}"
