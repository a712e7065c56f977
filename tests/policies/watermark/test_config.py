"""What an administrator may write, and what is refused with a reason."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

import genward_policies
from genward.errors import PolicyError
from genward.plugins import Plugins
from genward.policy import PolicyDocument
from genward_policies.watermark.config import WatermarkConfig

HEAD = "apiVersion: genward/v1\nkind: Policy\nname: x\n"
POWER = "{rows: 1000, at_fpr: 1e-6, under: [noise-5%, round-3, columns-70%]}"
ISSUE = f"watermark: {{scheme: select, candidates: 2, payload: tenant, power: {POWER}}}"


def test_the_written_out_default_is_the_default() -> None:
    document = PolicyDocument.load(HEAD + ISSUE, Plugins.of(genward_policies).policies, "x")
    assert document.parts["watermark"] == WatermarkConfig()


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("{candidates: 1}", "greater than or equal to 2"),
        ("{payload: key}", "tenant"),
        ("{power: {under: [blur-5%]}}", "is no attack"),
        ("{power: {under: [noise-0%]}}", "is no attack"),
        ("{power: {under: [round-3, round-3]}}", "stands twice"),
        ("{power: {rows: 3}}", "greater than or equal to 30"),
        ("{epoch: 3, epochs: 2}", "write 4"),
        ("{colour: red}", "unknown key"),
    ],
)
def test_nonsense_is_refused_with_its_place(part: str, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        PolicyDocument.load(f"{HEAD}watermark: {part}", Plugins.of(genward_policies).policies, "x")


def test_detection_tries_every_epoch_there_was() -> None:
    assert list(WatermarkConfig(epoch=2).known) == [0, 1, 2]
    assert list(WatermarkConfig(epoch=1, epochs=4).known) == [0, 1, 2, 3]
    with pytest.raises(ValidationError):
        WatermarkConfig(epoch=1, epochs=1)


def test_building_the_policy_imports_nothing_heavy() -> None:
    import subprocess
    import sys

    code = (
        "import sys, genward_policies as g\n"
        "from genward.plugins import Plugins\nfrom genward.policy import PolicyDocument\n"
        f"p = Plugins.of(g); d = PolicyDocument.load({HEAD + 'watermark: {}'!r}, p.policies, 'x');"
        "p.policy_set(d, None); print([m for m in ('torch', 'sklearn', 'scipy', 'bentoml') if m in sys.modules])"
    )
    done: Any = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
