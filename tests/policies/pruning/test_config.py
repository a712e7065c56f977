"""Settings: what an administrator may write, and how a contradiction is named."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import pytest
import yaml

from genward.errors import PolicyError
from genward.plugins import Plugins
from genward.policy import PolicyDocument

PLUGINS = Plugins.load(["genward"])
HEAD = "apiVersion: genward/v1\nkind: Policy\nname: t\npruning: "
GOOD: dict[str, Any] = {"price_per_vcpu_hour": 0.04, "target": {"cost_per_million_rows": 2.0e-5, "batch": 1024}}


def _load(**changes: Any) -> Any:
    return PolicyDocument.load(HEAD + yaml.safe_dump({**GOOD, **changes}, default_flow_style=True), PLUGINS.policies)


def test_the_issues_own_example_is_valid() -> None:
    document = _load(
        floor={"relative_quality_loss_hi95": 0.05, "tstr_drop": 0.01},
        allow=["structured", "int8_static", "steps"],
        data="none",
    )
    assert document.parts["pruning"].int8 == "static"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"price_per_vcpu_hour": 0}, "price_per_vcpu_hour"),
        ({"price_per_vcpu_hour": float("inf")}, "price_per_vcpu_hour"),
        ({"target": {"cost_per_million_rows": -1}}, "cost_per_million_rows"),
        ({"target": {"cost_per_million_rows": float("nan")}}, "cost_per_million_rows"),
        ({"target": {"cost_per_million_rows": 1e-5, "batch": 4096}}, "batch"),
        ({"allow": []}, "allow"),
        ({"allow": ["steps", "steps"]}, "twice"),
        ({"allow": ["int8_static", "int8_dynamic"]}, "exclude each other"),
        ({"allow": ["sparse"]}, "allow"),
        ({"data": "train"}, "data"),
        ({"floor": {"relative_quality_loss_hi95": 0}}, "relative_quality_loss_hi95"),
        ({"floor": {"tstr_dorp": 0.1}}, "tstr_drop"),
        ({"recovery_cpu_seconds": 0}, "recovery_cpu_seconds"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(PolicyError, match=said):
        _load(**changes)


def test_dynamic_scales_are_there_for_who_asks_and_not_by_default() -> None:
    assert _load().parts["pruning"].int8 == "static"
    assert _load(allow=["int8_dynamic"]).parts["pruning"].int8 == "dynamic"
    assert _load(allow=["structured"]).parts["pruning"].int8 is None


def test_the_shipped_document_is_the_default_one_and_a_price() -> None:
    texts = [files("genward_policies").joinpath(name).read_text() for name in ("pruned.yaml", "default.yaml")]
    pruned, default = (PolicyDocument.load(text, PLUGINS.policies) for text in texts)
    assert not [finding for finding in pruned.lint() if finding.level == "error"]
    assert {k: v for k, v in pruned.parts.items() if k != "pruning"} == dict(default.parts)
    assert pruned.parts["pruning"].data == "none"


def test_announcing_the_policy_imports_neither_torch_nor_onnxruntime() -> None:
    import subprocess
    import sys

    code = "import sys, genward_policies as p; p.genward_policies(); print({'torch', 'onnxruntime'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
