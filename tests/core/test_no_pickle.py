"""No pickle crosses a trust boundary: our code neither imports nor calls anything that unpickles."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ("platform", "plugins", "policies", "services", "audit", "examples", "benchmarks")
FORBIDDEN = {"pickle", "cloudpickle", "joblib", "dill", "shelve", "marshal"}
ALLOWED: set[str] = set()  # files that may, with the reason beside each


def _violations(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (f"import {alias.name}" for alias in node.names if alias.name.split(".")[0] in FORBIDDEN)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in FORBIDDEN:
            yield f"from {node.module}"
        elif isinstance(node, ast.Call):
            yield from _call(node)


def _call(node: ast.Call) -> Iterator[str]:
    name = ast.unparse(node.func)
    flags = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
    if name.endswith("torch.load") and flags.get("weights_only") != "True":
        yield "torch.load without weights_only=True"
    if flags.get("allow_pickle", "False") != "False":
        yield "allow_pickle"
    if (
        name in {"__import__", "importlib.import_module"}
        and node.args
        and ast.unparse(node.args[0]).strip("'\"") in FORBIDDEN
    ):
        yield f"{name} of a pickle"


def _files() -> list[Path]:
    found = [path for source in SOURCES for path in sorted((ROOT / source).rglob("*.py"))]
    return [path for path in found if str(path.relative_to(ROOT)) not in ALLOWED]


def test_our_code_never_unpickles() -> None:
    found = [f"{path}: {reason}" for path in _files() for reason in _violations(ast.parse(path.read_text()))]
    assert found == []
    assert len(_files()) > 10


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "np.load(f, allow_pickle=True)",
        "importlib.import_module('dill')",
    ],
)
def test_the_check_sees_what_it_must(code: str) -> None:
    assert list(_violations(ast.parse(code)))
