"""What goes over a data connection: fixed headers, little-endian, then blocks as they are.

    target: HELLO   magic, lease, secret
    source: WELCOME magic, bytes of a block, blocks of the lease
    target: ASK     first, count                  any number, two under way at a time
    source: ANSWER  first, count, sums, blocks    in the order of the questions; count 0: the lease has ended

Blocks are numbered from the lease's first. Sums are xxh3-128 of each block's bytes, seeded with its
BlockHash: a block that is whole but another one, or comes again in another's place, does not agree either.
"""

from collections.abc import Sequence
from struct import Struct

import numpy as np
import xxhash
from warmfleet_proto.errors import Corrupt
from warmfleet_proto.limits import SECRET_BYTES

SUM_BYTES = 16
PIECE_BYTES = 4 << 20  # of consecutive blocks in one answer, at most (or one block): the slabs of all streams
# are to fit into the processor's cache, from which they are summed and go on (LOG.md)
DEVICE_PIECE_BYTES = 8 << 20  # the same at a GPU, where each piece is waited for at both ends
PIECE_BLOCKS = 64  # where blocks are small: what is computed meanwhile meets the transfer between two pieces

_MAGIC = b"WFT1"
_HELLO = Struct(f"<4sQ{SECRET_BYTES}s")
_WELCOME = Struct("<4sQI")
_RANGE = Struct("<II")

HELLO_BYTES = _HELLO.size
WELCOME_BYTES = _WELCOME.size
RANGE_BYTES = _RANGE.size


def seed(block_hash: bytes) -> int:
    """The seed of a block's sum, from its BlockHash."""
    return int.from_bytes(block_hash[:8], "little") ^ int.from_bytes(block_hash[8:], "little")


def seeds(hashes: Sequence[bytes]) -> list[int]:
    """The seeds of many blocks at once."""
    halves = np.frombuffer(b"".join(hashes), "<u8").reshape(-1, 2)
    made: list[int] = (halves[:, 0] ^ halves[:, 1]).tolist()
    return made


def block_sum(block: bytes | memoryview, seed: int) -> bytes:
    return xxhash.xxh3_128_digest(block, seed)


def block_sums(slab: memoryview, size: int, seeds: Sequence[int]) -> list[bytes]:
    """Sums of the slab's first blocks, one for each seed."""
    return [block_sum(slab[i * size : (i + 1) * size], each) for i, each in enumerate(seeds)]


def piece_blocks(block_bytes: int, piece_bytes: int = PIECE_BYTES) -> int:
    """Blocks of one answer, at most."""
    return max(1, min(piece_bytes // block_bytes, PIECE_BLOCKS))


def hello(lease: int, secret: bytes) -> bytes:
    return _HELLO.pack(_MAGIC, lease, secret)


def read_hello(data: bytes) -> tuple[int, bytes]:
    """The lease and its secret. Raises Corrupt."""
    magic, lease, secret = _HELLO.unpack(data)
    if magic != _MAGIC:
        raise Corrupt("not a data connection")
    return lease, secret


def welcome(block_bytes: int, blocks: int) -> bytes:
    return _WELCOME.pack(_MAGIC, block_bytes, blocks)


def check_welcome(data: bytes, block_bytes: int, blocks: int) -> None:
    """Raises Corrupt when the source means other blocks."""
    magic, its_bytes, its_blocks = _WELCOME.unpack(data)
    if magic != _MAGIC or its_bytes != block_bytes or its_blocks < blocks:
        raise Corrupt(f"the source offers {its_blocks} blocks of {its_bytes} bytes")


def ask(first: int, count: int) -> bytes:
    return _RANGE.pack(first, count)


def read_ask(data: bytes, blocks: int, most: int) -> tuple[int, int]:
    """First and count. Raises Corrupt for what is not in the lease."""
    first, count = _RANGE.unpack(data)
    if not 0 < count <= most or first + count > blocks:
        raise Corrupt(f"blocks {first} and {count} more: the lease has {blocks}, an answer at most {most}")
    return first, count


def answer(first: int, sums: list[bytes]) -> bytes:
    return _RANGE.pack(first, len(sums)) + b"".join(sums)


def is_answer(data: bytes, first: int, count: int) -> bool:
    """Whether the blocks come that were asked for; false when the lease has ended. Raises Corrupt."""
    its_first, its_count = _RANGE.unpack(data)
    if its_first != first or its_count not in (0, count):
        raise Corrupt(f"asked for {count} blocks from {first}, got {its_count} from {its_first}")
    return bool(its_count)
