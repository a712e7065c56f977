"""Cutting and recovery: widths are what the recipe says, the heaviest channels stay, noise alone is read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from genward.candidate import Candidate
from genward.contracts import Silent
from genward.errors import CheckFailed
from genward_policies.pruning import cost
from genward_policies.pruning.quality import distance
from genward_policies.pruning.recover import recovered, require_widths
from genward_policies.pruning.torch_rows import made_by_torch

FAMILIES = ("vae", "diffusion")


def _smaller(candidate: Candidate, place: int = 0) -> Any:
    return candidate.family.thinner(candidate.config)[place]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_rung_has_the_widths_of_its_recipe(name: str, make_candidate: Callable[..., Candidate]) -> None:
    candidate = make_candidate(name)
    spec, network = candidate.codec.spec, candidate.network()
    rungs = candidate.family.thinner(candidate.config)
    assert len(rungs) >= 3
    assert [c.hidden for c in rungs] == sorted({c.hidden for c in rungs}, reverse=True)
    for config in rungs:
        require_widths(candidate.family, spec, candidate.family.cut(network, spec, config), config)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_network_of_other_widths_is_refused_by_its_parameters_name(
    name: str, make_candidate: Callable[..., Candidate]
) -> None:
    candidate = make_candidate(name)
    spec, config = candidate.codec.spec, _smaller(candidate)
    wrong = candidate.family.cut(candidate.network(), spec, _smaller(candidate, 1))
    with pytest.raises(CheckFailed, match=r"parameter '.*' has shape .* the recipe says"):
        require_widths(candidate.family, spec, wrong, config)


def test_a_cut_keeps_the_channels_that_matter(make_candidate: Callable[..., Candidate]) -> None:
    """Channels that nothing reads go first: a denoiser widened by dead channels is cut back to itself exactly."""
    candidate = make_candidate("diffusion")
    family, spec, small = candidate.family, candidate.codec.spec, candidate.config
    config = small.model_copy(update={"hidden": 2 * small.hidden})
    torch.manual_seed(5)
    wide: Any = family.build(spec, config)
    live = torch.randperm(config.hidden)[: small.hidden].sort().values
    dead = torch.ones(config.hidden, dtype=torch.bool)
    dead[live] = False
    with torch.no_grad():
        for block in wide.tower.blocks:
            block.up.weight[:, dead], block.down.weight[:, dead] = 0.0, 0.0
            block.down.weight[:, live] = torch.randn(config.hidden, small.hidden)
        wide.tower.last.weight[:, dead], wide.tower.first.weight[dead] = 0.0, 0.0
    cut: Any = family.cut(wide, spec, small)
    assert torch.equal(cut.tower.first.weight, wide.tower.first.weight[live])
    assert torch.equal(cut.tower.last.weight, wide.tower.last.weight[:, live])
    for new, old in zip(cut.tower.blocks, wide.tower.blocks, strict=True):
        inner = {tuple(row) for row in old.up.weight[live][:, live].tolist()}
        assert {tuple(row) for row in new.up.weight.tolist()} == inner


@pytest.mark.parametrize("name", FAMILIES)
def test_recovery_brings_a_cut_network_back_to_its_teacher(name: str, make_candidate: Callable[..., Candidate]) -> None:
    candidate = make_candidate(name)
    config = _smaller(candidate)
    if name == "diffusion":
        config = candidate.family.quicker(config, True)[2]
    teacher, spec = candidate.network(), candidate.codec.spec
    given = (candidate.family, teacher, candidate.config, config, candidate.codec)
    student = recovered(*given, 4.0, Silent(), pool=2048)
    wanted, _ = made_by_torch(candidate, teacher, candidate.config, 3000)
    before, after = (
        made_by_torch(candidate, network, config, 3000)[0]
        for network in (candidate.family.cut(teacher, spec, config), student)
    )
    assert distance(wanted, after) < 0.5 * distance(wanted, before)


def test_recovery_reads_noise_only(make_candidate: Callable[..., Candidate]) -> None:
    """It is handed a family, networks and a codec; whatever opens a file or a table meanwhile stops it."""
    import builtins
    from unittest.mock import patch

    candidate = make_candidate("vae")
    teacher = candidate.network()

    def refuse(*given: Any, **more: Any) -> Any:
        raise AssertionError(f"recovery opened {given[:1]}")

    with (
        patch.object(builtins, "open", refuse),
        patch("pathlib.Path.open", refuse),
        patch("pyarrow.parquet.read_table", refuse),
        patch.object(type(candidate.codec), "encode", refuse),
    ):
        recovered(candidate.family, teacher, candidate.config, _smaller(candidate), candidate.codec, 0.3, Silent(), 512)


@pytest.mark.parametrize("name", FAMILIES)
def test_conditions_are_kept(name: str, make_candidate: Callable[..., Candidate]) -> None:
    """A network with given columns is cut and taught with conditions in the codec's own shares."""
    candidate = make_candidate(name, ("phase",))
    config = _smaller(candidate)
    given = (candidate.family, candidate.network(), candidate.config, config, candidate.codec)
    student = recovered(*given, 0.5, Silent(), pool=512)
    rows, _ = made_by_torch(candidate, student, config, 1000)
    spec = candidate.codec.spec
    assert rows.shape == (1000, spec.width + spec.condition_width)
    shares = rows[:, -spec.condition_width :].mean(axis=0)
    assert np.allclose(shares, candidate.codec.shares["phase"], atol=0.05)


def test_fewer_steps_follow_the_teachers_finer_ones(make_candidate: Callable[..., Candidate]) -> None:
    """A DDIM step with the target that a student is taught ends where the teacher's steps end."""
    candidate = make_candidate("diffusion")
    teacher: Any = candidate.network()
    config = candidate.family.quicker(candidate.config, True)[-2]
    found: Any = candidate.family.distillation(teacher, candidate.config, config)
    torch.manual_seed(0)
    e = torch.randn(64, candidate.codec.spec.width)
    example = found.examples({"e": e}, None)
    x, v = example["x"], example["v"]
    table = found._student
    for k in range(config.steps - 1):
        clean = table.alphas[k] * x[:, k] - table.sigmas[k] * v[:, k]
        assert torch.allclose(table.keeps[k] * x[:, k] + table.moves[k] * clean, x[:, k + 1], atol=1e-4)
    last = table.alphas[-1] * x[:, -1] - table.sigmas[-1] * v[:, -1]
    rows = found._teacher(e)
    assert torch.allclose(teacher.uncentred(last), rows, atol=1e-4)


def test_a_family_without_a_network_has_nothing_to_cut() -> None:
    from genward.family import Family, Graph

    class Counts(Family):
        name = "counts"

        def build(self, spec: Any, config: Any) -> nn.Module:
            return nn.Identity()

        def graphs(self, network: nn.Module, config: Any) -> dict[str, Graph]:
            return {}

    family = Counts()
    assert not family.can_be_cut(None)
    with pytest.raises(TypeError, match="cannot be cut"):
        family.cut(nn.Identity(), None, None)  # type: ignore[arg-type]


def test_prices_follow_from_seconds() -> None:
    assert cost.price(3.6e-5, 0.04) == pytest.approx(4.0e-4)  # a million rows take 36 seconds, a hundredth of an hour
