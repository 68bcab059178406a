"""Keys of prompts' blocks; what was hashed before costs next to nothing.

A conversation comes again with every turn, and hashing takes time. So pieces of PIECE blocks are
remembered, each under the BlockHash that it follows and its own token ids.
"""

from collections.abc import Iterator

from warmfleet_proto import hashing
from warmfleet_proto.limits import HASH_BYTES, TOKEN_BYTES

from warmfleet_router.memo import Memo

PIECE = 32  # blocks
MEMO_BYTES = 64 << 20  # about 80 a block


def linked_python(parent: bytes, token_ids: bytes, size: int) -> bytes:
    """Packed keys of whole blocks, ``size`` bytes of token ids each, then the BlockHash of the last."""
    hashes = hashing.chain(parent, token_ids, size // TOKEN_BYTES)
    return hashing.keys(hashes) + (hashes[-1] if hashes else parent)


try:
    from warmfleet_router._native import linked
except ImportError:  # installed without a compiler, or the processor has no instructions for SHA-256
    linked = linked_python


class Hasher:
    """One for all tenants and kinds of workers: the root, which a chain begins with, tells them apart."""

    def __init__(self, memo_bytes: int = MEMO_BYTES) -> None:
        self.memo = Memo(memo_bytes)

    def keys(self, root: bytes, token_ids: bytes, block_size: int) -> bytes:
        """Packed 8-byte keys of the full blocks of a prompt (packed u32)."""
        return b"".join(self.pieces(root, token_ids, block_size))

    def pieces(self, root: bytes, token_ids: bytes, block_size: int) -> Iterator[bytes]:
        """The same keys in pieces of at most PIECE blocks, for a caller that pauses in between."""
        size, parent = block_size * TOKEN_BYTES, root
        whole = len(token_ids) // size * size
        for start in range(0, whole, PIECE * size):
            known = self._piece(parent, token_ids[start : min(start + PIECE * size, whole)], size)
            yield known[:-HASH_BYTES]
            parent = known[-HASH_BYTES:]

    def _piece(self, parent: bytes, token_ids: bytes, size: int) -> bytes:
        """Keys of its blocks and the BlockHash of the last. A part of a piece is not remembered: it grows."""
        if len(token_ids) < PIECE * size:
            return linked(parent, token_ids, size)
        known = self.memo.get(parent, token_ids)
        if known is None:
            known = linked(parent, token_ids, size)
            self.memo.put(parent, token_ids, known)
        return known
