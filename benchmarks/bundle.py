"""Seal and open a bundle against the public `model_signing`, in one run on one 5 MB model.

    python -m benchmarks.bundle

Both sides read, hash and sign or verify the same files. Ours also writes and syncs them (seal), and reads them into
memory from verified bytes (open). The library column is theirs called in a warm process; the command column is what a
person waits for at the shell.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from genward.bundle import SIGNATURE, Bundle, seal
from genward.keys import LocalKeys

REPEATS = 9
MANIFEST: dict[str, Any] = {
    "name": "benchmark",
    "family": {"name": "vae", "config": {}, "distribution": "genward", "version": "0"},
    "codec": "codec.json",
    "dataset": {"digest": "0" * 64, "rows": 1000},
    "graphs": {"sample": {"file": "generator.onnx"}},
    "table": {"slots": 1000, "candidates": 1, "block": 256},
    "golden": [],
    "runtime": {"onnxruntime": "0", "opset": 20},
    "policy": "",
    "created": "2026-01-01T00:00:00Z",
}


def median(act: Callable[[int], object], repeats: int = REPEATS) -> float:
    """Median seconds of an act, called with its turn."""
    taken = []
    for turn in range(repeats):
        start = time.perf_counter()
        act(turn)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def theirs(folder: Path, keys: LocalKeys, scratch: Path) -> tuple[float, float]:
    """Seconds that `model_signing` takes to sign and to verify as a library, warm."""
    from model_signing import hashing, signing, verifying

    def config() -> Any:
        return hashing.Config().set_ignored_paths(paths=[folder / SIGNATURE], ignore_git_paths=False)

    def sign(turn: int) -> None:
        signer = signing.Config().use_elliptic_key_signer(private_key=keys.folder / "bundle.pem")
        signer.set_hashing_config(config()).sign(folder, scratch / f"{turn}.sig")

    def verify(turn: int) -> None:
        verifier = verifying.Config().use_elliptic_key_verifier(public_key=keys.folder / "bundle.pub")
        verifier.set_hashing_config(config()).verify(folder, folder / SIGNATURE)

    return median(sign), median(verify)


def command(*args: str | Path) -> float:
    """Seconds of one run of the public command."""
    program = Path(sys.executable).with_name("model_signing")
    return median(lambda _: subprocess.run([str(program), *map(str, args)], check=True, capture_output=True), 3)


def main() -> None:
    files = {"generator.onnx": os.urandom(5 << 20), "codec.json": b"{}"}
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        keys = LocalKeys.create(root / "keys")
        sealed = median(lambda turn: seal(root / str(turn), files, MANIFEST, keys))
        opened = median(lambda turn: Bundle.open(root / str(turn), keys.trusted()))
        signed, verified = theirs(root / "0", keys, root)
        public, detached = ("--public_key", keys.folder / "bundle.pub"), ("--signature", root / "0" / SIGNATURE)
        shell = command("verify", "key", root / "0", *detached, *public)
    print(f"{'5 MB bundle, median of ' + str(REPEATS):<34} {'ms':>8} {'ratio':>8}")
    for label, seconds, against in [
        ("ours: seal (write, sync, sign)", sealed, signed),
        ("model_signing library: sign", signed, signed),
        ("ours: open (verify and read)", opened, verified),
        ("model_signing library: verify", verified, verified),
        ("model_signing command: verify", shell, verified),
    ]:
        print(f"{label:<34} {1000 * seconds:>8.1f} {seconds / against:>8.2f}")


if __name__ == "__main__":
    main()
