"""Documents that make no sense are refused with the words to write."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from genward_policies.extraction.config import ExtractionConfig


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"pool": "none"}, "max_risk.release: null"),
        ({"pool": None}, "max_risk.release: null"),
        ({"pool": "auto", "max_risk": {"release": None}}, "max_risk.release"),
        ({"pool": 0}, "how many slots"),
        ({"pool": True}, "pool"),
        ({"pool": "some"}, "auto"),
        ({"max_risk": {"key": 0}}, "greater than 0"),
        ({"max_risk": {"release": 1.5}}, "less than or equal to 1"),
        ({"max_risk": {"tenant": 0.5}}, "tenant"),
        ({"on_exceed": "steal"}, "recycle"),
        ({"detection": {"respond": "shout"}}, "record"),
        ({"calibration_cpu_seconds": 0}, "greater than"),
    ],
)
def test_what_makes_no_sense_is_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        ExtractionConfig(**given)


def test_defaults_are_those_of_the_docs() -> None:
    config = ExtractionConfig()
    assert (config.pool, config.max_risk.key, config.max_risk.release, config.on_exceed) == (
        "auto",
        0.5,
        0.8,
        "recycle",
    )
    assert ExtractionConfig(pool=500).pool == 500
    assert ExtractionConfig(pool="none", max_risk={"release": None}).pool == "none"  # type: ignore[arg-type]


def test_the_contract_suite_passes() -> None:
    from genward import testing
    from genward_policies.extraction import Extraction

    assert testing.check(Extraction) == list(testing.POLICY_CHECKS)


def test_building_the_policy_imports_nothing_heavy() -> None:
    import subprocess
    import sys

    program = (
        "import sys; from genward.plugins import Plugins; p = Plugins.load(['genward']);"
        "from genward_policies.extraction import Extraction; Extraction(Extraction.Config(), None);"
        "print([name for name in ('torch', 'sklearn', 'matplotlib', 'onnxruntime') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
