"""Keys of prompts' blocks; what was hashed before costs next to nothing.

A conversation comes again with every turn, and hashing is a microsecond a block. So pieces of
LARGE blocks are remembered, each under the BlockHash that it follows and its own token ids; a
piece that is new is made of pieces of SMALL blocks in the same way.
"""

from collections.abc import Iterator

from warmfleet_proto import hashing
from warmfleet_proto.limits import HASH_BYTES, TOKEN_BYTES

from warmfleet_router.memo import Memo

LARGE, SMALL = 64, 8  # blocks
MEMO_BYTES = 64 << 20  # about 190 a block


class Hasher:
    """One for all tenants and kinds of workers: the root, which a chain begins with, tells them apart."""

    def __init__(self, memo_bytes: int = MEMO_BYTES) -> None:
        self.memo = Memo(memo_bytes)

    def keys(self, root: bytes, token_ids: bytes, block_size: int) -> bytes:
        """Packed 8-byte keys of the full blocks of a prompt (packed u32)."""
        return b"".join(self.pieces(root, token_ids, block_size))

    def pieces(self, root: bytes, token_ids: bytes, block_size: int) -> Iterator[bytes]:
        """The same keys in pieces of at most LARGE blocks, for a caller that pauses in between."""
        size, parent = block_size * TOKEN_BYTES, root
        whole = len(token_ids) // size * size
        start = 0
        for step in (LARGE * size, SMALL * size, size):
            while whole - start >= step:
                # What is left below SMALL is not remembered, and hashed at once.
                end = start + step if step > size else whole
                known = self._piece(parent, token_ids[start:end], size)
                yield known[:-HASH_BYTES]
                parent, start = known[-HASH_BYTES:], end

    def _piece(self, parent: bytes, token_ids: bytes, size: int) -> bytes:
        """Keys of all its blocks, and the BlockHash of the last."""
        blocks = len(token_ids) // size
        if blocks < SMALL:
            return _hashed(parent, token_ids, size)
        known = self.memo.get(parent, token_ids)
        if known is None:
            known = (
                self._joined(parent, token_ids, size) if blocks > SMALL else _hashed(parent, token_ids, size)
            )
            self.memo.put(parent, token_ids, known)
        return known

    def _joined(self, parent: bytes, token_ids: bytes, size: int) -> bytes:
        keys = []
        for start in range(0, len(token_ids), SMALL * size):
            known = self._piece(parent, token_ids[start : start + SMALL * size], size)
            keys.append(known[:-HASH_BYTES])
            parent = known[-HASH_BYTES:]
        return b"".join((*keys, parent))


def _hashed(parent: bytes, token_ids: bytes, size: int) -> bytes:
    hashes = hashing.chain(parent, token_ids, size // TOKEN_BYTES)
    return hashing.keys(hashes) + hashes[-1]
