"""One onnxruntime session from verified bytes: one thread, a known provider, and runs that a deadline really stops."""

from __future__ import annotations

import platform
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import onnxruntime as ort
from numpy.typing import NDArray

from genward.errors import CheckFailed, DeadlineExceeded, IntegrityError, Unavailable

CPU = "CPUExecutionProvider"
# Vector paths that onnxruntime's kernels choose between; rows are bit for bit equal only where these agree.
_FLAGS = ("avx", "avx2", "fma", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "amx_int8", "asimd", "sve", "i8mm")


class Session:
    """Runs one graph. Thread-safe: each run computes in the thread that calls it.

    Args:
        graph: the model's bytes; never a path, so nothing else is opened.
        providers: wanted execution providers; the first is demanded and a missing one is `Unavailable`.
    """

    def __init__(self, graph: bytes, providers: Sequence[str] = (CPU,)) -> None:
        _demand(providers)
        try:
            self._session = ort.InferenceSession(graph, _options(), providers=list(providers))
        except Exception as error:  # onnxruntime's exceptions share no base of their own
            raise IntegrityError(f"onnxruntime refuses the graph: {_line(error)}", where="graph") from None
        self._session.disable_fallback()
        self.provider: str = self._session.get_providers()[0]
        if self.provider != providers[0]:
            raise _missing(providers[0], f"onnxruntime fell back to {self.provider}")
        self.inputs: tuple[str, ...] = tuple(x.name for x in self._session.get_inputs())

    def run(
        self, names: Sequence[str], feeds: Mapping[str, NDArray[Any]], stop: Stop | None = None
    ) -> list[NDArray[Any]]:
        """Named outputs; raises DeadlineExceeded when `stop` struck, CheckFailed when the graph cannot run."""
        if stop is not None:
            stop.check()
        try:
            out: list[NDArray[Any]] = self._session.run(list(names), dict(feeds), stop.options if stop else None)
        except Exception as error:
            if stop is not None:
                stop.check()
            raise CheckFailed(f"the graph cannot run: {_line(error)}", where="graph") from None
        return out


class Stop:
    """A deadline, in seconds of time.monotonic(), that terminates running calls. Made by `stopping`."""

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.options = ort.RunOptions()
        self.options.log_severity_level = 4

    @property
    def left(self) -> float:
        return self.deadline - time.monotonic()

    def check(self) -> None:
        if self.left <= 0:
            raise DeadlineExceeded("the time for this request is up", remedy="ask for fewer rows or a later deadline")

    def strike(self) -> None:
        self.options.terminate = True


@contextmanager
def stopping(deadline: float | None) -> Iterator[Stop | None]:
    """A Stop whose timer runs while the block does; None without a deadline."""
    if deadline is None:
        yield None
        return
    stop = Stop(deadline)
    stop.check()
    timer = threading.Timer(stop.left, stop.strike)
    timer.daemon = True
    timer.start()
    try:
        yield stop
    finally:
        timer.cancel()


def fingerprint(provider: str) -> dict[str, str]:
    """What rows are bit for bit equal on: onnxruntime's version, the provider, the class of CPU."""
    return {"onnxruntime": ort.__version__, "provider": provider, "cpu": cpu_class()}


@cache
def cpu_class() -> str:
    """Vendor, family, model and the vector flags that kernels choose by, for example GenuineIntel/6/143/avx+avx2."""
    info = Path("/proc/cpuinfo")
    text = info.read_text().split("\n\n", 1)[0] if info.is_file() else ""
    facts = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in text.splitlines())}
    has = set((facts.get("flags") or facts.get("Features") or "").split())
    vendor = facts.get("vendor_id") or facts.get("CPU implementer") or platform.processor()
    model = facts.get("model") or facts.get("CPU part") or ""
    flags = "+".join(flag for flag in _FLAGS if flag in has)
    return "/".join((platform.machine(), vendor, facts.get("cpu family", ""), model, flags))


def _options() -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 4
    options.use_deterministic_compute = True
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _demand(providers: Sequence[str]) -> None:
    known = ort.get_available_providers()
    missing = [name for name in providers if name not in known]
    if missing or not providers:
        raise _missing(missing[0] if missing else "(none)", f"onnxruntime has {', '.join(known)}")


def _missing(provider: str, why: str) -> Unavailable:
    remedy = "install an onnxruntime that has it, or change `providers` in genward.yaml"
    return Unavailable(f"the execution provider {provider} is not there: {why}", remedy=remedy, retry_after=None)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
