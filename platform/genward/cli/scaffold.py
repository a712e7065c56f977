"""`genward plugin new`: the files of a plugin package."""

from __future__ import annotations

import re
from pathlib import Path

from genward.errors import UsageError

_PYPROJECT = """\
[build-system]
requires = ["hatchling>=1.27"]
build-backend = "hatchling.build"

[project]
name = "{name}"
version = "0.1.0"
description = "A genward plugin."
requires-python = ">=3.11"
dependencies = ["genward"]

[project.entry-points.genward]
{name} = "{package}"

[tool.hatch.build.targets.wheel]
packages = ["src/{package}"]
"""

_INIT = '''\
"""Announces the family and the policy of {name}. Allow it in `genward.yaml`: `plugins: [genward, {name}]`."""

from collections.abc import Sequence

from genward.hookspecs import hookimpl


@hookimpl
def genward_families() -> Sequence[type]:
    from {package}.family import {title}

    return [{title}]


@hookimpl
def genward_policies() -> Sequence[type]:
    from {package}.policy import {title}Policy

    return [{title}Policy]
'''

_FAMILY = '''\
"""A family that keeps each column's spread and forgets everything else: the place to start from."""

from genward.family import Family, FamilyConfig, Graph, NoiseSpec, Objective, Optimiser, Phase


class {title}Config(FamilyConfig):
    pass


class Likelihood(Objective):
    optimiser = Optimiser(lr=0.02)

    def loss(self, network, record, noise, progress):
        return network.surprise(record["x"])  # (B,): one loss per record


class {title}(Family):
    name = "{name}"
    reference = ""
    Config = {title}Config

    def build(self, spec, config):
        from {package}.network import Network

        return Network(spec.width)

    def phases(self, network, config):
        return [Phase([Likelihood()])]

    def graphs(self, network, config):
        return {{"sample": Graph(network, noise=[NoiseSpec("z", network.mean.shape)], conditions=False)}}
'''

_NETWORK = '''\
"""The torch module, apart so that announcing the family does not import torch."""

import torch
from torch import nn


class Network(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(width))
        self.log_scale = nn.Parameter(torch.zeros(width))

    def surprise(self, x):
        """Negative log-likelihood (B,) in nats, without its constant."""
        z = (x - self.mean) * torch.exp(-self.log_scale)
        return (0.5 * z * z + self.log_scale).sum(-1)

    def forward(self, z):
        """Encoded rows (B, width) from noise (B, width)."""
        return self.mean + z * torch.exp(self.log_scale)
'''

_POLICY = '''\
"""A request policy: refuses requests for more than `rows` rows."""

from pydantic import BaseModel, ConfigDict, Field

from genward.contracts import Facts, Request, Verdict
from genward.hookspecs import hookimpl
from genward.policy import Policy


class {title}PolicyConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    rows: int = Field(1000, ge=1, description="most rows a request may ask for")


class {title}Policy(Policy):
    name = "{key}"
    Config = {title}PolicyConfig

    @hookimpl
    def admit(self, request: Request, facts: Facts) -> Verdict:
        if request.n > self.config.rows:
            return Verdict(False, (f"{key}: at most {{self.config.rows}} rows",))
        return Verdict(True)
'''

_TEST = '''\
"""The contract suites of genward, run over this plugin."""

from genward import testing
from {package}.family import {title}
from {package}.policy import {title}Policy


def test_family_keeps_the_contract():
    assert testing.check({title})


def test_policy_keeps_the_contract():
    assert testing.check({title}Policy)
'''


def write_plugin(name: str, into: Path) -> Path:
    """Write a plugin package `name` under `into`; returns its folder. Refuses to touch an existing one."""
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise UsageError(f"{name!r} is no distribution name", remedy="use small letters, digits and single dashes")
    folder = into / name
    package = name.replace("-", "_")
    words = {
        "name": name,
        "package": package,
        "key": f"{package}_rows",
        "title": "".join(part.capitalize() for part in name.split("-")),
    }
    files = {
        "pyproject.toml": _PYPROJECT,
        f"src/{package}/__init__.py": _INIT,
        f"src/{package}/family.py": _FAMILY,
        f"src/{package}/network.py": _NETWORK,
        f"src/{package}/policy.py": _POLICY,
        "tests/test_contract.py": _TEST,
    }
    try:
        folder.mkdir(parents=True)
        for path, text in files.items():
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text.format(**words), encoding="utf-8")
    except FileExistsError:
        raise UsageError("exists already", where=str(folder), remedy="choose another name or folder") from None
    return folder
