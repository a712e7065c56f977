"""Ten ways, and more, to a void guarantee that raise nothing by themselves: each is refused by name before training, or
computed rightly record by record and never handed to ghost clipping."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from genward.errors import CheckFailed
from genward.family import Field, NoiseSpec, Objective, Optimiser, Phase, Record, Spec
from genward_families.diffusion.ddim import TableDiffusion
from genward_families.vae.mixed import TableVAE
from genward_policies.privacy.conformance import Conformance, check, check_phase, drawn, sensitivity, synthetic
from genward_policies.privacy.engine import AGREE, Ghost, Vmap, choose, disagreement, perturbed

WIDTH, HIDDEN, TOKENS = 6, 10, 7
SPEC = Spec("table", tuple(Field(f"c{i}", "number", i, 1) for i in range(WIDTH)))


class Net(nn.Module):
    """A reconstruction, with a place in the middle to break."""

    def __init__(self, middle: Callable[[Net, Tensor], Tensor] | None = None, **modules: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.last = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)
        self.middle = middle
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        found: Tensor = self.last(h if self.middle is None else self.middle(self, h))
        return found


class Fit(Objective):
    """Squared error of a reconstruction, one a record."""

    noise: Sequence[NoiseSpec] = ()
    optimiser = Optimiser()

    def loss(self, network: nn.Module, record: Record, noise: Record, progress: float) -> Tensor:
        found: Tensor = (network(record["x"]) - record["x"]).square().sum(dim=1)
        return found


class With(Fit):
    """A loss made of a function, and other settings of an objective."""

    def __init__(self, run: Callable[..., Tensor], **settings: Any) -> None:
        self.run = run
        for name, value in settings.items():
            setattr(self, name, value)

    def loss(self, network: nn.Module, record: Record, noise: Record, progress: float) -> Tensor:
        return self.run(network, record["x"], noise)


def error(network: Any, x: Tensor) -> Tensor:
    found: Tensor = (network(x) - x).square().sum(dim=1)
    return found


def per_feature(net: Net, h: Tensor) -> Tensor:
    return nn.functional.batch_norm(h, None, None, training=True)


def by_layer(name: str) -> Callable[[Any, Tensor], Tensor]:
    return lambda net, h: getattr(net, name)(h)


def discriminate(net: Net, h: Tensor) -> Tensor:
    """Minibatch discrimination (Salimans et al. 2016, arXiv:1606.03498): closeness to the other records."""
    return h + torch.exp(-torch.cdist(h, h)).sum(dim=1, keepdim=True)


def pac(network: Any, x: Tensor, noise: Any) -> Tensor:
    """PacGAN with pairs: a loss for two records."""
    return error(network, x).reshape(-1, 2).mean(dim=1)


def pac_repeated(network: Any, x: Tensor, noise: Any) -> Tensor:
    """The same, given out as if it were one loss a record."""
    losses = error(network, x)
    pairs = (losses + losses.roll(1)) / 2
    return pairs


def with_fakes(network: Any, x: Tensor, noise: Any) -> Tensor:
    """A critic's loss over the real records and a fixed number of fakes."""
    fakes = torch.linspace(-1, 1, 4 * WIDTH).reshape(4, WIDTH)
    return torch.cat([error(network, x), -error(network, fakes)])


def with_mean_fakes(network: Any, x: Tensor, noise: Any) -> Tensor:
    return error(network, x) - error(network, noise["z"]).mean()


def contrast(network: Any, x: Tensor, noise: Any) -> Tensor:
    """InfoNCE: every other record of the batch is a negative."""
    y = network(x)
    return nn.functional.cross_entropy(y @ x.T, torch.arange(len(x)), reduction="none")


def own_torch(network: Any, x: Tensor, noise: Any) -> Tensor:
    return error(network, x + 0.1 * torch.randn_like(x))


def own_numpy(network: Any, x: Tensor, noise: Any) -> Tensor:
    return error(network, x + 0.1 * float(np.random.default_rng().normal()))


def own_dropout(network: Any, x: Tensor, noise: Any) -> Tensor:
    return error(network, nn.functional.dropout(x, 0.2))


def thrice(network: Any, x: Tensor, noise: Any) -> Tensor:
    """Augmentation that puts each record in the batch three times."""
    return error(network, torch.cat([x, x + 0.1, x - 0.1]))


def cut(network: Any, x: Tensor, noise: Any) -> Tensor:
    return error(network, x) * float(error(network, x).detach().max().item())


def mean(network: Any, x: Tensor, noise: Any) -> Tensor:
    return error(network, x).mean()


class Codebook(nn.Module):
    """A moving average of what passes, as VQ-VAE's codebooks keep it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(HIDDEN))

    seen: Tensor

    def forward(self, h: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                self.seen.lerp_(h.detach().mean(dim=0), 0.1)
        return h - self.seen.clone()


NORMAL = (NoiseSpec("z", (WIDTH,)),)
PLAIN_BN = nn.BatchNorm1d(HIDDEN, affine=False, track_running_stats=False)
REFUSED: Mapping[str, tuple[Callable[[], nn.Module], Callable[[], Objective], str]] = {
    "batch norm without state": (lambda: Net(by_layer("bn"), bn=PLAIN_BN), Fit, "GroupNorm"),
    "batch norm": (lambda: Net(by_layer("bn"), bn=nn.BatchNorm1d(HIDDEN)), Fit, "bn .BatchNorm1d."),
    "functional batch norm": (lambda: Net(per_feature), Fit, "one included|beside it"),
    "minibatch discrimination": (lambda: Net(discriminate), Fit, "beside it"),
    "pacs": (Net, lambda: With(pac), "one loss per record"),
    "pacs in disguise": (Net, lambda: With(pac_repeated), "beside it"),
    "a fixed number of fakes": (Net, lambda: With(with_fakes), "one loss per record"),
    "a mean over fakes": (Net, lambda: With(with_mean_fakes, noise=NORMAL), "beside it"),
    "contrastive": (Net, lambda: With(contrast), "beside it"),
    "torch's randomness": (Net, lambda: With(own_torch), "NoiseSpec"),
    "numpy's randomness": (Net, lambda: With(own_numpy), "NoiseSpec"),
    "functional dropout": (Net, lambda: With(own_dropout), "NoiseSpec"),
    "dropout": (lambda: Net(by_layer("drop"), drop=nn.Dropout(0.1)), Fit, "dropout"),
    "records repeated": (Net, lambda: With(thrice), "one loss per record"),
    "a scale from the batch": (Net, lambda: With(cut), "beside it"),
    "one loss for all": (Net, lambda: With(mean), "one loss per record"),
    "a codebook of averages": (lambda: Net(by_layer("book"), book=Codebook()), Fit, "book.seen"),
    "it says so itself": (Net, lambda: With(lambda n, x, z: error(n, x), couples=True), "couples"),
    "no data": (Net, lambda: With(lambda n, x, z: error(n, x), reads_data=False), "reads no data"),
    "nothing to train": (lambda: Net().requires_grad_(False), Fit, "trains no parameter"),
    "no gradient": (Net, lambda: With(lambda n, x, z: error(n, x).detach() * 1.0), "no gradient"),
    "not finite": (Net, lambda: With(lambda n, x, z: error(n, x) / 0.0), "not finite"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_breaks_the_guarantee_is_refused_by_name_with_a_mend(name: str) -> None:
    build, objective, says = REFUSED[name]
    network, refused = build(), objective()
    with pytest.raises(CheckFailed, match=says) as found:
        check(network, refused, None, SPEC, 1.0)
    assert found.value.where == f"{type(refused).__name__} on {type(network).__name__}"
    assert found.value.remedy


class Tied(nn.Module):
    """An embedding whose weight is the head's too, by a function or as one parameter."""

    def __init__(self, functional: bool) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.embed, self.body = nn.Linear(WIDTH, HIDDEN, bias=False), nn.Linear(HIDDEN, HIDDEN)
        self.functional = functional
        if not functional:
            self.head = nn.Linear(HIDDEN, WIDTH, bias=False)
            self.head.weight = nn.Parameter(self.embed.weight.T.clone())
            self.back = nn.Linear(WIDTH, HIDDEN, bias=False)
            self.back.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.body(self.embed(x)))
        if self.functional:
            return nn.functional.linear(h, self.embed.weight.T)
        found: Tensor = self.head(h + self.back(x))
        return found


class Sequenced(nn.Module):
    """Records as sequences of numbers, through a module of torch that Opacus has no rule for."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.kind, self.into, self.out = kind, nn.Linear(1, 8), nn.Linear(8, 1)
        self.body: nn.Module = nn.LSTM(8, 8, batch_first=True) if kind == "lstm" else nn.MultiheadAttention(
            8, 2, batch_first=True
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        h = self.into(x[:, :, None])
        h = self.body(h)[0] if self.kind == "lstm" else self.body(h, h, h)[0]
        found: Tensor = self.out(h)[:, :, 0]
        return found


def functional(network: Any, x: Tensor, noise: Any) -> Tensor:
    return (nn.functional.linear(torch.tanh(network.first(x)), network.last.weight) - x).square().sum(dim=1)


def also_functional(network: Any, x: Tensor, noise: Any) -> Tensor:
    """A weight used by its module and beside it: hooks see half of its gradient."""
    return error(network, x) + nn.functional.linear(x, network.first.weight).square().sum(dim=1)


def penalised(network: Any, x: Tensor, noise: Any) -> Tensor:
    return error(network, x) + 0.5 * sum(p.square().sum() for p in network.parameters())


def folded(network: Any, x: Tensor, noise: Any) -> Tensor:
    """Three draws of noise a record, folded into the record axis of the network."""
    draws = (x[:, None] + noise["e"]).reshape(-1, WIDTH)
    return (network(draws) - draws).square().sum(dim=1).reshape(len(x), 3).mean(dim=1)


def twice(network: Any, x: Tensor, noise: Any) -> Tensor:
    return (network(network(x)) - x).square().sum(dim=1)


def wasserstein(network: Any, x: Tensor, noise: Any) -> Tensor:
    """WGAN-GP (arXiv:1704.00028): a second derivative in the loss."""

    def critic(x: Tensor) -> Tensor:
        found: Tensor = network(x).sum(dim=1)
        return found

    slope = torch.func.grad(lambda y: critic(y).sum())(x)
    return critic(noise["z"]) - critic(x) + (slope.square().sum(dim=1).add(1e-6).sqrt() - 1).square()


BY_RECORD: Mapping[str, tuple[Callable[[], nn.Module], Callable[[], Objective]]] = {
    "functional weight": (Net, lambda: With(functional)),
    "weight used twice": (Net, lambda: With(also_functional)),
    "tied by a function": (lambda: Tied(True), Fit),
    "tied parameter": (lambda: Tied(False), Fit),
    "weight penalty": (Net, lambda: With(penalised)),
    "draws in the record axis": (Net, lambda: With(folded, noise=(NoiseSpec("e", (3, WIDTH)),))),
    "module called twice": (Net, lambda: With(twice)),
    "unused parameter": (lambda: Net(spare=nn.Linear(2, 2)), Fit),
    "LSTM": (lambda: Sequenced("lstm"), Fit),
    "attention": (lambda: Sequenced("attention"), Fit),
    "WGAN-GP": (Net, lambda: With(wasserstein, noise=NORMAL)),
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors: a second thread waits more than it works."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def trial(objective: Objective, spec: Spec = SPEC, count: int = 48) -> tuple[Record, Record]:
    return synthetic(spec, count), drawn(objective.noise, count, torch.Generator().manual_seed(9), "cpu")


@pytest.mark.parametrize("name", BY_RECORD)
def test_what_hooks_cannot_see_is_computed_record_by_record_and_never_by_ghost(name: str) -> None:
    build, make = BY_RECORD[name]
    network, objective = build(), make()
    found = check(network, objective, None, SPEC, 0.5)
    assert found.error <= 1e-5
    assert found.sensitivity <= 1.001
    assert disagreement(network, objective, *trial(objective)) > AGREE
    assert choose(network, objective, *trial(objective)).name == "vmap"
    with pytest.raises(CheckFailed, match="reference"):
        choose(network, objective, *trial(objective), "ghost")
    assert torch.is_grad_enabled(), "a failed trial must not leave gradients off"


@pytest.mark.parametrize("name", ["weight used twice", "tied by a function", "weight penalty"])
def test_ghost_on_them_would_have_broken_the_bound(name: str) -> None:
    """What the choice protects from is real: one record moves ghost's sum by more than C, and nothing raises."""
    build, make = BY_RECORD[name]
    objective = make()
    network = perturbed(build(), objective, 0.3)
    record, noise = trial(objective, count=12)
    assert sensitivity(Vmap(network, objective), record, noise, 0.5, 0.1) <= 1.001
    assert sensitivity(Ghost(network, objective), record, noise, 0.5, 0.1) > 1.02


MIXED = Spec(
    "table",
    (
        Field("a", "number", 0, 1), Field("b", "number", 1, 1), Field("b", "choice", 2, 2), Field("k", "choice", 4, 5),
        Field("l", "choice", 9, 3),
    ),
    (Field("g", "choice", 0, 3),),
)  # fmt: skip
FAMILIES = {
    "vae": (TableVAE, {"hidden": 32, "latent": 4}),
    "diffusion": (TableDiffusion, {"hidden": 32, "blocks": 2}),
    "diffusion, four draws": (TableDiffusion, {"hidden": 32, "blocks": 2, "draws": 4}),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_shipped_families_keep_the_bound(name: str) -> None:
    family, settings = FAMILIES[name]
    config = family.Config(**settings)
    network = family().build(MIXED, config)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    (objective,) = family().phases(network, config)[0].objectives
    began = time.process_time()
    found = check(network, objective, None, MIXED, 1.0)
    assert time.process_time() - began < 6
    assert found.sensitivity <= 1.001
    assert found.error <= 1e-5
    assert found.units == 16
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    record, noise = trial(objective, MIXED)
    assert disagreement(network, objective, record, noise) <= 1e-5
    fast = Ghost(perturbed(network, objective, 0.3), objective)
    assert sensitivity(fast, record, noise, 0.5, 0.01) <= 1.001


def test_what_a_frozen_part_holds_does_not_count() -> None:
    """A generator with batch statistics inside a critic's loss is fine: it runs in eval() and does not move."""

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.critic = Net()
            self.generator = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.Dropout(0.5))

    def paired(network: Any, x: Tensor, noise: Any) -> Tensor:
        found: Tensor = (network.critic(network.generator(noise["z"])) - network.critic(x)).sum(dim=1)
        return found

    found = check(Pair(), With(paired, noise=NORMAL, trains=("critic",)), None, SPEC, 1.0)
    assert found.sensitivity <= 1.001


def test_dropout_that_drops_nothing_is_fine() -> None:
    assert isinstance(check(Net(by_layer("drop"), drop=nn.Dropout(0.0)), Fit(), None, SPEC, 1.0), Conformance)


def test_public_records_may_be_given_and_torch_draws_as_before() -> None:
    network = Net()
    torch.manual_seed(4)
    state = torch.get_rng_state()
    found = check(network, Fit(), {"x": torch.ones(5, WIDTH)}, SPEC, 1.0)
    assert found.units == 5
    assert torch.equal(torch.get_rng_state(), state)


def test_a_look_at_the_data_before_training_is_refused() -> None:
    def begin(network: nn.Module, record: Record) -> None:
        raise AssertionError("must not run")

    for phase in (Phase([Fit()], begin=begin), Phase([Fit()], statistics=["actnorm"])):
        with pytest.raises(CheckFailed, match="public constants"):
            check_phase(phase, "flow")
    check_phase(Phase([Fit()]), "flow")


def test_records_are_drawn_from_the_spec_alone() -> None:
    made = synthetic(MIXED, 64)
    assert made["x"].shape == (64, MIXED.width)
    assert made["c"].shape == (64, MIXED.condition_width)
    for field in MIXED.fields:
        part = made["x"][:, field.start : field.start + field.width]
        if field.kind == "choice":
            assert torch.equal(part.sum(dim=1), torch.ones(64))
            assert (part.sum(dim=0) > 0).all()
    assert torch.equal(made["x"], synthetic(MIXED, 64)["x"])
