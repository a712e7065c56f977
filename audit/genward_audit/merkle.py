"""The Merkle tree of RFC 6962 section 2.1 and RFC 9162 section 2.1: hashes, proofs and the growing right edge.

Two doors: `Frontier` grows a tree in O(log n) memory; `verify_inclusion` and `verify_consistency` check a stranger's
proofs and raise `ProofError`. Proofs are made from any `ReadHash`, a callable (level, index) -> 32 bytes that gives
the root of the perfect subtree over leaves index * 2**level ... (index + 1) * 2**level - 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import sha256

from genward_audit.errors import FormatError, ProofError, UsageError

HASH_BYTES = 32
EMPTY_ROOT = sha256(b"").digest()
MAX_SIZE = (1 << 63) - 1

ReadHash = Callable[[int, int], bytes]
Visit = Callable[[int, int, bytes], None]


def leaf_hash(entry: bytes) -> bytes:
    """Hash of one entry, RFC 6962 section 2.1: the 0x00 prefix keeps leaves and nodes apart."""
    return sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Hash of two subtrees, RFC 6962 section 2.1."""
    return sha256(b"\x01" + left + right).digest()


def _split(n: int) -> int:
    """The largest power of two smaller than n > 1: where RFC 6962 cuts a tree of n leaves."""
    return 1 << ((n - 1).bit_length() - 1)


def _pieces(start: int, end: int) -> Iterator[tuple[int, int]]:
    """Perfect subtrees (level, index) that tile [start, end), largest first; start is aligned to the first."""
    while start < end:
        level = (end - start).bit_length() - 1
        yield level, start >> level
        start += 1 << level


def fold(hashes: Iterable[bytes]) -> bytes:
    """Root of neighbouring perfect subtrees, given in order, largest first; of none: the empty root."""
    root = b""
    for one in reversed(list(hashes)):
        root = node_hash(one, root) if root else one
    return root or EMPTY_ROOT


def _range_root(start: int, end: int, read: ReadHash) -> bytes:
    return fold(read(level, index) for level, index in _pieces(start, end))


def tree_root(size: int, read: ReadHash) -> bytes:
    """MTH of the first `size` leaves, RFC 6962 section 2.1."""
    return _range_root(0, size, read)


def inclusion_proof(index: int, size: int, read_hash: ReadHash) -> list[bytes]:
    """PATH(index, D[size]) of RFC 9162 section 2.1.3.1, the leaf's sibling first."""
    if not 0 <= index < size:
        raise UsageError(f"a tree of {size} entries has no entry {index}")
    proof, low, high = [], 0, size
    while high - low > 1:
        middle = low + _split(high - low)
        if index < middle:
            proof.append(_range_root(middle, high, read_hash))
            high = middle
        else:
            proof.append(_range_root(low, middle, read_hash))
            low = middle
    return proof[::-1]


def consistency_proof(size1: int, size2: int, read_hash: ReadHash) -> list[bytes]:
    """PROOF(size1, D[size2]) of RFC 9162 section 2.1.4.1."""
    if not 0 < size1 <= size2:
        raise UsageError(f"no consistency proof from size {size1} to {size2}")
    proof, low, high = [], 0, size2
    while size1 != high:
        middle = low + _split(high - low)
        if size1 <= middle:
            proof.append(_range_root(middle, high, read_hash))
            high = middle
        else:
            proof.append(_range_root(low, middle, read_hash))
            low = middle
    if low:  # the verifier holds the old root itself only when the old tree is one left edge
        proof.append(_range_root(low, high, read_hash))
    return proof[::-1]


def _check_hashes(*hashes: bytes) -> None:
    if any(len(one) != HASH_BYTES for one in hashes):
        raise ProofError("a hash is not 32 bytes")


def inclusion_root(index: int, size: int, leaf: bytes, proof: Sequence[bytes]) -> bytes:
    """The root that `proof` gives to a leaf hash: RFC 9162 section 2.1.3.2, steps 1 to 4."""
    if not 0 <= index < size:
        raise ProofError(f"index {index} is outside a tree of {size}")
    _check_hashes(leaf, *proof)
    node, last, root = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            raise ProofError("the inclusion proof is too long")
        if node & 1 or node == last:
            root = node_hash(sibling, root)
            while node and not node & 1:
                node, last = node >> 1, last >> 1
        else:
            root = node_hash(root, sibling)
        node, last = node >> 1, last >> 1
    if last:
        raise ProofError("the inclusion proof is too short")
    return root


def verify_inclusion(index: int, size: int, leaf: bytes, proof: Sequence[bytes], root: bytes) -> None:
    """Raise `ProofError` unless the leaf hash stands at `index` of the tree with `root`."""
    if inclusion_root(index, size, leaf, proof) != root:
        raise ProofError(f"the inclusion proof of entry {index} does not lead to the root of size {size}")


def verify_consistency(size1: int, size2: int, root1: bytes, root2: bytes, proof: Sequence[bytes]) -> None:
    """Raise `ProofError` unless tree 1 is a prefix of tree 2: RFC 9162 section 2.1.4.2.

    Size 0 is refused: any tree continues the empty one, so a proof from it says nothing.
    """
    if not 0 < size1 <= size2:
        raise ProofError(f"no consistency from size {size1} to {size2}")
    if size1 == size2:
        if proof or root1 != root2:
            raise ProofError(f"two trees of size {size1} differ")
        return
    _check_hashes(root1, root2, *proof)
    if not proof:
        raise ProofError("the consistency proof is empty")
    if _two_roots(size1, size2, root1, proof) != (root1, root2):
        raise ProofError(f"the tree of size {size2} does not continue the tree of size {size1}")


def _two_roots(size1: int, size2: int, root1: bytes, proof: Sequence[bytes]) -> tuple[bytes, bytes]:
    path = [root1, *proof] if size1 & (size1 - 1) == 0 else list(proof)
    node, last = size1 - 1, size2 - 1
    while node & 1:
        node, last = node >> 1, last >> 1
    old = new = path[0]
    for one in path[1:]:
        if last == 0:
            raise ProofError("the consistency proof is too long")
        if node & 1 or node == last:
            old, new = node_hash(one, old), node_hash(one, new)
            while node and not node & 1:
                node, last = node >> 1, last >> 1
        else:
            new = node_hash(new, one)
        node, last = node >> 1, last >> 1
    if last:
        raise ProofError("the consistency proof is too short")
    return old, new


class Frontier:
    """The right edge of a growing tree: roots of its perfect subtrees, largest first (a compact range).

    `append` costs amortised two hashes and the whole state is at most 64 of them.
    """

    __slots__ = ("_edge", "_size")

    def __init__(self, size: int = 0, edge: Sequence[bytes] = ()) -> None:
        if not 0 <= size <= MAX_SIZE:
            raise FormatError(f"a tree cannot have {size} entries")
        if len(edge) != size.bit_count() or any(len(one) != HASH_BYTES for one in edge):
            raise FormatError(f"the right edge of a tree of {size} has {size.bit_count()} hashes of 32 bytes")
        self._size = size
        self._edge = list(edge)

    @property
    def size(self) -> int:
        """How many leaves the tree has."""
        return self._size

    @property
    def edge(self) -> tuple[bytes, ...]:
        """Roots of the perfect subtrees, largest first."""
        return tuple(self._edge)

    def append(self, leaf: bytes, visit: Visit | None = None) -> None:
        """Add a leaf hash. `visit` sees each perfect subtree this completes, as (level, index, hash), lowest first."""
        if len(leaf) != HASH_BYTES:
            raise UsageError("a leaf hash is 32 bytes")
        level, index, one = 0, self._size, leaf
        if visit:
            visit(0, index, one)
        while index & 1:
            one = sha256(b"\x01" + self._edge.pop() + one).digest()
            level, index = level + 1, index >> 1
            if visit:
                visit(level, index, one)
        self._edge.append(one)
        self._size += 1

    def append_subtree(self, level: int, root: bytes) -> None:
        """Add a perfect subtree of 2**level leaves at once; the size must be a multiple of 2**level."""
        if self._size % (1 << level) or len(root) != HASH_BYTES:
            raise UsageError(f"a subtree of {1 << level} leaves does not fit at {self._size}")
        index, one = self._size >> level, root
        while index & 1:
            one = node_hash(self._edge.pop(), one)
            index >>= 1
        self._edge.append(one)
        self._size += 1 << level

    def root(self) -> bytes:
        """MTH of the leaves so far, RFC 6962 section 2.1."""
        return fold(self._edge)

    def copy(self) -> Frontier:
        """An independent frontier with the same leaves."""
        return Frontier(self._size, self._edge)

    def to_bytes(self) -> bytes:
        """Size as 8 bytes big-endian, then the edge, largest subtree first."""
        return self._size.to_bytes(8, "big") + b"".join(self._edge)

    @classmethod
    def from_bytes(cls, data: bytes) -> Frontier:
        """Read what `to_bytes` wrote; raises FormatError."""
        if len(data) < 8 or (len(data) - 8) % HASH_BYTES:
            raise FormatError("a frontier is 8 bytes and a whole number of hashes")
        edge = [data[at : at + HASH_BYTES] for at in range(8, len(data), HASH_BYTES)]
        return cls(int.from_bytes(data[:8], "big"), edge)

    @classmethod
    def of_tree(cls, size: int, read_hash: ReadHash) -> Frontier:
        """The right edge of a tree whose hashes can be read."""
        return cls(size, [read_hash(level, index) for level, index in _pieces(0, size)])
