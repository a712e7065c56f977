"""RFC 6962 hashing and proofs: published vectors, exhaustive small trees, and a naive oracle."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genward_audit.errors import AuditError, FormatError, ProofError, UsageError
from genward_audit.merkle import (
    EMPTY_ROOT,
    Frontier,
    consistency_proof,
    inclusion_proof,
    inclusion_root,
    leaf_hash,
    node_hash,
    tree_root,
    verify_consistency,
    verify_inclusion,
)

VECTORS = Path(__file__).parents[3] / "shared/vectors/merkle"
LIMIT = 130
hashes = st.binary(min_size=32, max_size=32)


def _root(leaves: list[bytes]) -> bytes:
    """The recursive definition, as the RFC writes it: the oracle."""
    if len(leaves) < 2:
        return leaves[0] if leaves else sha256(b"").digest()
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return node_hash(_root(leaves[:k]), _root(leaves[k:]))


def _tree(size: int) -> tuple[list[bytes], Callable[[int, int], bytes]]:
    leaves = [leaf_hash(b"%d" % i) for i in range(size)]
    nodes: dict[tuple[int, int], bytes] = {}
    frontier = Frontier()
    for leaf in leaves:
        frontier.append(leaf, lambda level, index, one: nodes.__setitem__((level, index), one))
    return leaves, lambda level, index: nodes[level, index]


LEAVES, READ = _tree(LIMIT)
ROOTS = [_root(LEAVES[:n]) for n in range(LIMIT + 1)]


def _bytes(text: str | None) -> bytes:
    return base64.b64decode(text or "")


def _check_vector(case: dict[str, Any]) -> None:
    proof = [_bytes(one) for one in case["proof"] or ()]
    if "leafIdx" in case:
        verify_inclusion(case["leafIdx"], case["treeSize"], _bytes(case["leafHash"]), proof, _bytes(case["root"]))
    else:
        verify_consistency(case["size1"], case["size2"], _bytes(case["root1"]), _bytes(case["root2"]), proof)


def test_all_published_vectors_get_the_published_answer() -> None:
    if not VECTORS.is_dir():
        pytest.skip("published vectors are not at ../shared/vectors/merkle")
    files = sorted(VECTORS.rglob("*.json"))
    wrong = []
    for file in files:
        case = json.loads(file.read_text())
        try:
            _check_vector(case)
            refused = False
        except ProofError:
            refused = True
        if refused != case["wantErr"]:
            wrong.append(str(file.relative_to(VECTORS)))
    assert len(files) == 196
    assert wrong == []


def test_the_empty_tree_has_the_published_root() -> None:
    assert base64.b64encode(EMPTY_ROOT) == b"47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="
    assert Frontier().root() == EMPTY_ROOT == tree_root(0, READ)


def test_the_frontier_has_the_recursive_root_at_every_size() -> None:
    frontier = Frontier()
    for size, leaf in enumerate(LEAVES):
        assert frontier.root() == ROOTS[size] == tree_root(size, READ)
        assert Frontier.from_bytes(frontier.to_bytes()).root() == ROOTS[size]
        assert Frontier.of_tree(size, READ).edge == frontier.edge
        frontier.append(leaf)


def test_every_inclusion_proof_up_to_130_verifies_and_fits_no_other_leaf() -> None:
    for size in range(1, LIMIT + 1):
        for index in range(size):
            proof = inclusion_proof(index, size, READ)
            verify_inclusion(index, size, LEAVES[index], proof, ROOTS[size])
            if size > 1:
                other = LEAVES[(index + 1) % size]
                assert inclusion_root(index, size, other, proof) != ROOTS[size]


def test_every_consistency_proof_up_to_130_verifies_and_fits_no_other_root() -> None:
    for new in range(1, LIMIT + 1):
        for old in range(1, new + 1):
            proof = consistency_proof(old, new, READ)
            verify_consistency(old, new, ROOTS[old], ROOTS[new], proof)
            with pytest.raises(ProofError):
                verify_consistency(old, new, ROOTS[old - 1], ROOTS[new], proof)


@given(st.integers(1, LIMIT), st.data())
def test_a_changed_proof_is_refused(size: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, size - 1))
    proof = inclusion_proof(index, size, READ)
    bent = data.draw(st.lists(st.sampled_from([*proof, b"\0" * 32, ROOTS[size]]), max_size=9))
    if bent != proof:
        with pytest.raises(ProofError):
            verify_inclusion(index, size, LEAVES[index], bent, ROOTS[size])


@given(st.integers(), st.integers(), st.lists(st.binary(max_size=40), max_size=70), st.binary(max_size=40))
def test_only_our_errors_escape_the_verifiers(a: int, b: int, proof: list[bytes], root: bytes) -> None:
    for check in (
        lambda: verify_inclusion(a, b, root, proof, root),
        lambda: verify_consistency(a, b, root, root, proof),
    ):
        try:
            check()
        except AuditError:
            continue


@given(st.binary(max_size=200))
def test_only_our_errors_escape_the_frontier_reader(data: bytes) -> None:
    try:
        frontier = Frontier.from_bytes(data)
    except FormatError:
        return
    assert frontier.to_bytes() == data


def test_subtrees_append_as_their_leaves_do() -> None:
    whole = Frontier()
    whole.append_subtree(6, READ(6, 0))
    whole.append_subtree(6, READ(6, 1))
    assert (whole.size, whole.root()) == (128, ROOTS[128])
    with pytest.raises(UsageError):
        Frontier(1, [LEAVES[0]]).append_subtree(1, LEAVES[1])


def test_proofs_that_have_no_meaning_are_refused() -> None:
    with pytest.raises(UsageError):
        inclusion_proof(5, 5, READ)
    with pytest.raises(UsageError):
        consistency_proof(0, 5, READ)
    with pytest.raises(UsageError):
        Frontier().append(b"short")
