"""The shape of the repository is kept by a machine: who may import whom, and what an import may cost."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOTS = {
    "genward": ROOT / "platform",
    "genward_families": ROOT / "plugins",
    "genward_policies": ROOT / "policies",
    "genward_services": ROOT / "services",
    "genward_audit": ROOT / "audit",
}
MAY_IMPORT = {
    "genward_audit": set(),
    "genward": set(),
    "genward_families": {"genward"},
    "genward_policies": {"genward"},
    "genward_services": set(ROOTS),
}


def _imports(path: Path) -> set[str]:
    """Top-level names a file imports, type-checking imports included."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("package", ROOTS)
def test_import_arrows_never_run_back(package: str) -> None:
    allowed = MAY_IMPORT[package] | {package}
    for path in (ROOTS[package] / package).rglob("*.py"):
        back = (_imports(path) & set(ROOTS)) - allowed
        assert not back, f"{path.relative_to(ROOT)} imports {back}"


@pytest.mark.parametrize("package", ROOTS)
def test_a_source_root_is_no_package_itself(package: str) -> None:
    """platform/__init__.py would shadow the standard library's `platform`."""
    assert not (ROOTS[package] / "__init__.py").exists()
    assert (ROOTS[package] / package / "py.typed").exists()


def test_importing_genward_brings_nothing_heavy() -> None:
    heavy = "{'torch', 'bentoml', 'onnxruntime', 'onnx', 'sklearn', 'pyarrow', 'sqlalchemy', 'matplotlib'}"
    code = f"import sys, genward; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("module", ["genward_families", "genward_policies", "genward.hookspecs", "genward.plugins"])
def test_announcing_plugins_does_not_import_torch(module: str) -> None:
    code = f"import sys, {module}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_every_version_is_pinned() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert len(pins) > 50
    assert all("==" in line for line in pins)


def test_no_file_of_ours_is_longer_than_500_lines() -> None:
    long = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for package, root in ROOTS.items()
        for path in (root / package).rglob("*.py")
    }
    assert {path: lines for path, lines in long.items() if lines > 500} == {}
