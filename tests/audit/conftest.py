"""A small builder of whole logs for the tests that read them: plain, independent of the writer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from genward_audit.checkpoint import Checkpoint
from genward_audit.cosignature import Cosigner
from genward_audit.merkle import Frontier, leaf_hash
from genward_audit.note import Signer, parse_note, sign
from genward_audit.tiles import ENTRIES, TILE_WIDTH, encode_entries, new_tiles

ORIGIN = "audit.example/golden"
TIME = 1_790_000_000
SIGNER = Signer(ORIGIN, Ed25519PrivateKey.from_private_bytes(b"\x01" * 32))
WITNESSES = tuple(
    Cosigner(f"witness.example/w{i}", Ed25519PrivateKey.from_private_bytes(bytes([i]) * 32)) for i in (2, 3)
)

MakeLog = Callable[..., Path]


def build_log(
    folder: Path, entries: Sequence[bytes], signer: Signer = SIGNER, witnesses: Sequence[Cosigner] = ()
) -> Path:
    """Write checkpoint, tiles and bundles of a log, in one go."""
    nodes: dict[tuple[int, int], bytes] = {}
    frontier = Frontier()
    for entry in entries:
        frontier.append(leaf_hash(entry), lambda level, index, one: nodes.__setitem__((level, index), one))
    for tile in new_tiles(0, len(entries)):
        places = range(tile.index * TILE_WIDTH, tile.index * TILE_WIDTH + tile.width)
        path = folder / tile.path
        path.parent.mkdir(parents=True, exist_ok=True)
        if tile.level == ENTRIES:
            path.write_bytes(encode_entries([entries[at] for at in places]))
        else:
            path.write_bytes(b"".join(nodes[8 * tile.level, at] for at in places))
    text = Checkpoint(signer.name, len(entries), frontier.root()).marshal()
    note = parse_note(sign(text, signer)).with_signatures(*(one.cosign(text, TIME) for one in witnesses))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "checkpoint").write_bytes(note.marshal())
    return folder


@pytest.fixture
def make_log(tmp_path: Path) -> MakeLog:
    """`make_log(entries, ...)` builds a log in a fresh folder and gives the folder."""

    def make(entries: Sequence[bytes], name: str = "log", **options: object) -> Path:
        return build_log(tmp_path / name, entries, **options)  # type: ignore[arg-type]

    return make
