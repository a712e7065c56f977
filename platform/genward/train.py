"""The training loop: phases of objectives, one optimiser each, a moving average that is adopted in the end.

Batches and noise are keyed by (seed, phase, step), so a run that was killed and resumed ends in the same bytes as one
that was not. A time budget is turned into a number of steps by a short calibration, so that the learning rate always
comes down fully and resuming stays exact.
"""

from __future__ import annotations

import hashlib
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from genward.contracts import Progress
from genward.errors import DataError, Interrupted, NotFound, UsageError
from genward.family import Family, Objective, Phase, Protected, Record, Spec, Trained, Turn
from genward.turns import OpenTurn

Protector = Callable[..., Protected]  # called with the parts of a genward.family.Training that only the run knows
STEPS = 20_000  # when neither steps nor a budget is given
_EVALUATIONS = 40  # of the held-out loss, over a phase
_CALIBRATION = 100  # steps at most, on a throw-away copy
_KEPT = 0.95  # share of a budget that is planned for; checkpoints and the network's file take the rest
_LATE = 1.15  # of a budget: a machine that slowed down since the calibration stops here, not fully annealed
_LOOKED_AT = 4096  # held-out records at most


@dataclass(frozen=True)
class TrainOptions:
    """How to train; written into the checkpoint. A budget counts this process's CPU seconds or wall minutes."""

    seed: int = 0
    steps: int | None = None
    max_minutes: float | None = None
    max_cpu_seconds: float | None = None
    batch: int = 256
    held_out: float = 0.05  # of the training records, for early stopping; 4,096 at most
    patience: int = 12  # evaluations without a better held-out loss
    ema: float = 0.999
    clip: float = 1.0  # largest gradient norm
    checkpoint_seconds: float = 30.0
    device: str = "auto"


def train(
    family: Family,
    config: Any,
    spec: Spec,
    records: Mapping[str, NDArray[np.float32]],
    folder: Path,
    options: TrainOptions,
    progress: Progress,
    resume: bool = False,
    protect: Protector | None = None,
) -> Trained:
    """Train a family on encoded records and leave network, checkpoint and loss curves in `folder`.

    With `protect`, what it returns owns every look at the records: the run keeps no loss, stops at no held-out loss,
    and a resumed one draws new noise.

    Raises DataError for too few records or a loss that is not finite, Interrupted after Ctrl-C (state saved).
    """
    if family.bins(config):
        from genward.fitting import fit

        return fit(family, config, spec, records, folder, options, progress, protect)
    run = Run(family, config, spec, records, folder, options, protect)
    if resume:
        run.load()
    with _held_interrupt(run):
        run.go(progress)
    return run.finish()


@contextmanager
def _held_interrupt(run: Run) -> Iterator[None]:
    """Ctrl-C waits for the end of the step, so that what is saved is never half a step; a second one does not wait."""

    def ask(number: int, frame: Any) -> None:
        if run.asked_to_stop:
            raise KeyboardInterrupt
        run.asked_to_stop = True

    if threading.current_thread() is not threading.main_thread():
        yield  # signals belong to the main thread
        return
    before = signal.signal(signal.SIGINT, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class Run:
    """One training: what it needs, where it stands."""

    def __init__(
        self,
        family: Family,
        config: Any,
        spec: Spec,
        records: Mapping[str, NDArray[np.float32]],
        folder: Path,
        options: TrainOptions,
        protect: Protector | None = None,
    ) -> None:
        if spec.width == 0:
            raise DataError("no column is left to generate", remedy="condition on fewer columns")
        self.options, self.folder = options, folder
        self.subject = _digest(family.name, config, {} if protect else records)
        self.asked_to_stop = False
        folder.mkdir(parents=True, exist_ok=True)
        self.device = _device(options.device)
        torch.manual_seed(options.seed)
        self.network = family.build(spec, config).to(self.device)
        self.phases = list(family.phases(self.network, config))
        self.protected = None if protect is None else self._protect(protect, spec, records)
        seen = options if protect is None else replace(options, held_out=0.0)  # a look at private rows is not free
        self.fit, self.held = _split(records, seen, self.device)
        self.phase, self.step, self.steps = 0, 0, 0
        self.history: list[dict[str, float]] = []
        self.turns: list[OpenTurn | Turn] = []
        self.average: list[Tensor] = []
        self.best: tuple[float, list[Tensor]] | None = None
        self.stale = 0

    def _protect(self, protect: Protector, spec: Spec, records: Mapping[str, NDArray[np.float32]]) -> Protected:
        return protect(
            spec=spec,
            network=self.network,
            phases=self.phases,
            records=records,
            device=self.device,
            options=self.options,
        )

    def go(self, progress: Progress) -> None:
        """Every phase that is left."""
        while self.phase < len(self.phases):
            phase = self.phases[self.phase]
            self._begin(phase)
            self._run(phase, progress)
            self._adopt()
            self.phase, self.step, self.steps = self.phase + 1, 0, 0
            self.turns, self.best, self.stale = [], None, 0

    def _begin(self, phase: Phase) -> None:
        if self.turns:
            return  # resumed
        if phase.begin is not None:
            phase.begin(self.network, self._batch(0))
        self.turns = self._turns(phase)
        self.average = [p.detach().clone() for p in self.network.parameters()]
        self.steps = self._count_steps(phase)

    def _turns(self, phase: Phase) -> list[OpenTurn | Turn]:
        owner = self.protected
        return [
            OpenTurn(self.network, o) if owner is None or not o.reads_data else owner.turn(self.phase, i)
            for i, o in enumerate(phase.objectives)
        ]

    def _run(self, phase: Phase, progress: Progress) -> None:
        every = max(1, -(-self.steps // _EVALUATIONS))
        saved, losses, late = time.monotonic(), 0.0, self._deadline(phase)
        progress.start(f"train {self.phase + 1}/{len(self.phases)}", self.steps)
        while self.step < self.steps:
            losses = self._one(self.step, self.steps)
            self.step += 1
            if self.step % every == 0 or self.step == self.steps:
                note = self._evaluate(phase, losses)
                progress.update(self.step, note)
                if self.stale > self.options.patience or late():
                    break
            if self.asked_to_stop:
                self.save()
                progress.finish("stopped")
                remedy = "the same command with --resume goes on"
                raise Interrupted(f"training was stopped at step {self.step}", where=str(self.folder), remedy=remedy)
            if time.monotonic() - saved > self.options.checkpoint_seconds:
                self.save()
                saved = time.monotonic()
        progress.finish(f"{self.step} steps")

    def _one(self, step: int, steps: int) -> float:
        """One turn of every objective; returns the first one's mean loss."""
        first = 0.0
        for index, turn in enumerate(self.turns):
            for repeat in range(self.phases[self.phase].objectives[index].repeats):
                if isinstance(turn, OpenTurn):
                    loss = self._open_turn(turn, (self.phase, step, index, repeat), step, steps)
                    first = loss if index == 0 else first
                else:
                    turn.take(step, steps)
        self._average(step)
        return first

    def _open_turn(self, turn: OpenTurn, key: tuple[int, ...], step: int, steps: int) -> float:
        noise = self._noise(turn.objective, self.options.batch, *key)
        loss = turn.take(self._batch(*key), noise, step, steps, self.options.clip)
        if not math.isfinite(loss):
            where, remedy = f"{type(turn.objective).__name__}, step {step}", "lower the learning rate (lr)"
            raise DataError("the loss is not finite", where=where, remedy=remedy)
        return loss

    def _average(self, step: int) -> None:
        """Moving average with a warm start, so that the first thousand steps do not hang on the initial weights."""
        keep = min(self.options.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(self.average, [p.detach() for p in self.network.parameters()], 1 - keep)

    def _evaluate(self, phase: Phase, loss: float) -> str:
        """The held-out loss of the moving average; remembers the best and how long ago it was."""
        if self.protected is not None:
            return ""
        point = {"phase": self.phase, "step": self.step, "loss": loss}
        if phase.monitor is not None and len(self.held["x"]):
            held = self._held_out(phase.objectives[phase.monitor])
            point["held_out"] = held
            if self.best is None or held < self.best[0]:
                self.best, self.stale = (held, [p.clone() for p in self.average]), 0
            else:
                self.stale += 1
        self.history.append(point)
        return "  ".join(f"{name} {point[name]:.4f}" for name in ("loss", "held_out") if name in point)

    def _held_out(self, objective: Objective) -> float:
        noise = self._noise(objective, len(self.held["x"]), -1)
        current = [p.detach().clone() for p in self.network.parameters()]
        _put(self.network, self.average)
        self.network.eval()
        with torch.no_grad():
            loss = float(objective.loss(self.network, self.held, noise, 1.0 - 1e-6).mean())
        _put(self.network, current)
        return loss

    def _adopt(self) -> None:
        """The network becomes its moving average, at the best held-out loss where one was watched."""
        _put(self.network, self.best[1] if self.best is not None else self.average)

    # keyed draws

    def _batch(self, *key: int) -> Record:
        rows = len(self.fit["x"])
        index = torch.randint(rows, (min(self.options.batch, rows),), generator=self._generator(1, *key))
        return {name: part[index.to(self.device)] for name, part in self.fit.items()}

    def _noise(self, objective: Objective, rows: int, *key: int) -> Record:
        rows = min(rows, len(self.fit["x"])) if key[0] >= 0 else rows
        generator = self._generator(2, *key)
        found = {}
        for spec in objective.noise:
            draw = torch.randn if spec.law == "normal" else torch.rand
            found[spec.name] = draw((rows, *spec.shape), generator=generator).to(self.device)
        return found

    def _generator(self, *key: int) -> torch.Generator:
        entropy = np.random.SeedSequence([self.options.seed, *(k & 0xFFFFFFFF for k in key)])
        return torch.Generator().manual_seed(int(entropy.generate_state(1, np.uint64)[0] >> np.uint64(1)))

    # how long

    def _count_steps(self, phase: Phase) -> int:
        if self.protected is not None:
            return self.protected.steps(self.phase)
        if self.options.steps is not None:
            return max(1, round(self.options.steps * self._share(phase)))
        budgets = self._budgets(phase)
        return self._affordable(phase, budgets) if budgets else max(1, round(STEPS * self._share(phase)))

    def _share(self, phase: Phase) -> float:
        return phase.share / sum(p.share for p in self.phases)

    def _budgets(self, phase: Phase) -> list[tuple[Callable[[], float], float]]:
        """(clock, seconds) of each budget that was given, the phase's share of it."""
        minutes, cpu = self.options.max_minutes, self.options.max_cpu_seconds
        known = [(time.process_time, cpu), (time.monotonic, None if minutes is None else 60 * minutes)]
        return [(clock, budget * self._share(phase)) for clock, budget in known if budget is not None]

    def _deadline(self, phase: Phase) -> Callable[[], bool]:
        """Says whether a budget is overrun, counted from now. Never so with a number of steps, which is exact."""
        budgets = self._budgets(phase) if self.options.steps is None and self.protected is None else []
        ends = [(clock, clock() + _LATE * budget) for clock, budget in budgets]
        return lambda: any(clock() > end for clock, end in ends)

    def _affordable(self, phase: Phase, budgets: Sequence[tuple[Callable[[], float], float]]) -> int:
        """Steps that all budgets hold together with their evaluations; the calibration is paid from them."""

        def now() -> NDArray[np.float64]:
            return np.array([clock() for clock, _ in budgets])

        limits = np.array([seconds for _, seconds in budgets])
        began = now()
        pace = self._pace(phase, now, limits)
        before = now()
        if phase.monitor is not None and len(self.held["x"]):
            self._held_out(phase.objectives[phase.monitor])
        look = now() - before
        left = _KEPT * limits - (now() - began)
        steps = np.maximum(left / (pace + look), (left - _EVALUATIONS * look) / pace)
        return max(1, int(steps.min()))

    def _pace(
        self, phase: Phase, now: Callable[[], NDArray[np.float64]], limits: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Seconds a step takes by each clock, measured on a copy; the first steps are not typical and do not count."""
        kept = [p.detach().clone() for p in self.network.parameters()]
        average = [p.clone() for p in self.average]
        ends = [now()]
        while len(ends) <= 3 or (len(ends) <= _CALIBRATION and (ends[-1] - ends[0] < 0.03 * limits).all()):
            self._one(len(ends) - 1, 10_000)
            ends.append(now())
        pace = np.median(np.diff(ends, axis=0)[len(ends) // 5 :], axis=0)  # one step that had to wait says little
        _put(self.network, kept)
        self.average = average
        self.turns = self._turns(phase)
        return np.maximum(pace, 1e-6)

    # on disk

    def save(self) -> None:
        """Write the checkpoint; a crash leaves the one before."""
        state = {
            "options": asdict(replace(self.options, device="auto")),
            "subject": self.subject,
            "at": [self.phase, self.step, self.steps, self.stale],
            "network": self.network.state_dict(),
            "turns": [turn.state_dict() for turn in self.turns],
            "average": self.average,
            "best": None if self.best is None else [self.best[0], self.best[1]],
            "history": self.history,
        }
        replaced(self.folder / "checkpoint.pt", lambda path: torch.save(state, path))

    def load(self) -> None:
        """Stand where the checkpoint stood; start anew when there is none."""
        path = self.folder / "checkpoint.pt"
        if not path.is_file():
            return
        state = torch.load(path, weights_only=True, map_location=self.device)
        if state["options"] != asdict(replace(self.options, device="auto")):
            raise UsageError("the checkpoint was made with other options", where=str(path), remedy="train anew")
        if state["subject"] != self.subject:
            raise UsageError(
                "the checkpoint is of another family, configuration or table", where=str(path), remedy="train anew"
            )
        self.phase, self.step, self.steps, self.stale = state["at"]
        self.network.load_state_dict(state["network"])
        self.average, self.history = state["average"], state["history"]
        self.best = None if state["best"] is None else (state["best"][0], state["best"][1])
        if self.phase < len(self.phases):
            self.turns = self._turns(self.phases[self.phase])
            for turn, saved in zip(self.turns, state["turns"], strict=True):
                turn.load_state_dict(saved)

    def finish(self) -> Trained:
        """Write network and curves; the checkpoint stays, so that a finished run resumes to itself."""
        from safetensors.torch import save_file

        if self.protected is not None:
            self.protected.finish()
        self.network.eval().cpu()
        tensors = {name: t.contiguous() for name, t in self.network.state_dict().items()}
        replaced(self.folder / "network.safetensors", lambda path: save_file(tensors, path))
        history = {"steps": self.history, "options": asdict(self.options)}
        replaced(self.folder / "losses.json", lambda path: path.write_text(json.dumps(history, indent=1)))
        replaced(self.folder / "losses.png", lambda path: plot_losses(self.history, path))
        return Trained(self.network, history)


def load_network(family: Family, config: Any, spec: Spec, folder: Path) -> nn.Module:
    """The trained network of a candidate's folder; NotFound when training has not finished."""
    from safetensors.torch import load_file

    path = folder / "network.safetensors"
    if not path.is_file():
        raise NotFound("training has not finished", where=str(folder), remedy="go on with `genward train --resume`")
    network = family.build(spec, config)
    network.load_state_dict(load_file(path))
    return network.eval()


def plot_losses(history: Sequence[Mapping[str, float]], path: Path) -> None:
    """Loss curves as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name in ("loss", "held_out"):
        points = [(i, h[name]) for i, h in enumerate(history) if name in h]
        axes.plot([history[i]["step"] for i, _ in points], [value for _, value in points], label=name.replace("_", " "))
    axes.set_xlabel("step")
    axes.set_ylabel("loss per field")
    axes.legend()
    figure.savefig(path, dpi=110, format="png")


def _split(
    records: Mapping[str, NDArray[np.float32]], options: TrainOptions, device: torch.device
) -> tuple[Record, Record]:
    """(fit, held out) on the device."""
    rows = len(records["x"])
    if rows < 2:
        raise DataError(f"{rows} records are nothing to learn from", remedy="give a larger table")
    if not all(np.isfinite(part).all() for part in records.values()):
        raise DataError("an encoded record is not finite", remedy="check the table against its schema")
    order = np.random.default_rng([options.seed, 3]).permutation(rows)
    cut = min(rows - 1, round(rows * options.held_out), _LOOKED_AT)
    sides = (order[cut:], order[:cut])
    fit, held = ({k: torch.from_numpy(v[side]).to(device) for k, v in records.items()} for side in sides)
    return fit, held


def _digest(family: str, config: Any, records: Mapping[str, NDArray[np.float32]]) -> str:
    """What a checkpoint belongs to: SHA-256 over family, configuration and records."""
    digest = hashlib.sha256(f"{family} {config!r}".encode())
    for name, part in sorted(records.items()):
        digest.update(f" {name} {part.shape} ".encode() + np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()


def _device(wanted: str) -> torch.device:
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=wanted)
        return torch.device(wanted)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device {wanted!r} cannot be used: {str(error).splitlines()[0]}") from None


def _put(network: nn.Module, values: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for parameter, value in zip(network.parameters(), values, strict=True):
            parameter.copy_(value)


def replaced(path: Path, write: Any) -> None:
    """Write a file through a temporary one, so that it is there whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    write(temporary)
    temporary.replace(path)
