"""What the product is installed with may be used by whoever it is for: no BUSL, no GPL in the runtime dependencies."""

from __future__ import annotations

import re
from importlib import metadata

import pytest
from packaging.requirements import Requirement

FORBIDDEN = re.compile(
    r"BUSL|Business Source|SSPL|Server Side Public|Elastic-?2|Commons Clause|(?<!L)GPL|Non-?Commercial", re.I
)
# What says nothing in its metadata and brings the text of its licence as a file; the first line is what counts.
IN_A_FILE = {"cedarpy": "Apache License"}
EXTRAS = ("train", "serve", "postgres")
_LGPL = re.compile(r"L(?:esser )?GPL|Lesser General Public", re.I)


def _needed(name: str, extras: tuple[str, ...], seen: dict[str, metadata.Distribution]) -> None:
    """A distribution and everything it needs here, installed ones only."""
    key = re.sub(r"[-_.]+", "-", name).lower()
    if key in seen:
        return
    try:
        found = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return
    seen[key] = found
    for line in found.requires or ():
        needed = Requirement(line)
        wanted = needed.marker is None or any(needed.marker.evaluate({"extra": e}) for e in ("", *extras))
        if wanted:
            _needed(needed.name, tuple(needed.extras), seen)


def _licence(found: metadata.Distribution) -> str:
    """What a distribution says of itself: expression, classifiers, and the first line of its licence."""
    about = found.metadata
    classifiers = [c for c in about.get_all("Classifier") or [] if c.startswith("License")]
    first = (about.get("License") or "").strip().split("\n")[0]
    return " | ".join(filter(None, [about.get("License-Expression"), *classifiers, first]))


@pytest.fixture(scope="module")
def runtime() -> dict[str, metadata.Distribution]:
    seen: dict[str, metadata.Distribution] = {}
    _needed("genward", EXTRAS, seen)
    return seen


def test_the_runtime_is_all_there_to_be_looked_at(runtime: dict[str, metadata.Distribution]) -> None:
    assert {"torch", "scikit-learn", "bentoml", "opacus", "onnxruntime", "pyarrow"} <= set(runtime)
    assert not {"sdv", "ctgan", "copulas", "rdt", "sdmetrics"} & set(runtime)


def test_no_runtime_dependency_has_a_licence_that_forbids_its_use(runtime: dict[str, metadata.Distribution]) -> None:
    said = {name: _licence(found) for name, found in runtime.items()}
    assert {name: text for name, text in said.items() if FORBIDDEN.search(_LGPL.sub("", text))} == {}
    silent = {name for name, text in said.items() if not text}
    assert silent <= set(IN_A_FILE), "no licence is stated"
    for name in silent:
        texts = [path.read_text() for path in runtime[name].files or () if path.name.upper().startswith("LICENSE")]
        assert texts, name
        assert all(IN_A_FILE[name] in text and not FORBIDDEN.search(text) for text in texts)


@pytest.mark.parametrize("text", ["BUSL-1.1", "Business Source License 1.1", "GPL-3.0-only", "AGPL-3.0", "GNU GPLv3"])
def test_what_is_looked_for_would_be_found(text: str) -> None:
    assert FORBIDDEN.search(_LGPL.sub("", text))


@pytest.mark.parametrize(
    "text", ["LGPL-3.0-only", "MIT", "Apache-2.0", "GNU Lesser General Public License v3 (LGPLv3)"]
)
def test_what_is_allowed_is_not_found(text: str) -> None:
    assert not FORBIDDEN.search(_LGPL.sub("", text))
