"""The sum that guards a block's bytes between a device and its host.

Multilinear over 32-bit little-endian words, twice with 64-bit constants: with rows of ``ROW_WORDS`` words,
sum h = sum over rows r of rung[r][h] * (sum over k of key[h][k] * word[r][k]), modulo 2^64. Odd constants
make any change of one word show; two sums of independent constants leave a chance of about 2^-64 that a
random change does not. Not against forgery: a peer's blocks are proven by xxh3 over an authenticated link.
"""

import hashlib

import numpy as np
import numpy.typing as npt

ROW_WORDS = 1024

Constants = npt.NDArray[np.uint64]


def keys() -> Constants:
    """One for each word of a row and each sum, [2, ROW_WORDS]; odd."""
    return _odd("keys", 2 * ROW_WORDS).reshape(2, ROW_WORDS)


def rungs(rows: int) -> Constants:
    """One for each row and each sum, [rows, 2]; odd. Those of fewer rows are the first of those of more."""
    return _odd("rungs", 2 * rows).reshape(rows, 2)


def rows_of(block_bytes: int) -> int:
    """Rows of a block; the last may be short, as if filled up with zeros."""
    return -(-block_bytes // (4 * ROW_WORDS))


def block_sum(data: bytes) -> tuple[int, int]:
    """The sum of a block, whose bytes are a multiple of 4. This is its definition."""
    count = rows_of(len(data))
    words = np.zeros(count * ROW_WORDS, dtype=np.uint64)
    words[: len(data) // 4] = np.frombuffer(data, dtype="<u4")
    by_row = (words.reshape(count, 1, ROW_WORDS) * keys()).sum(axis=2, dtype=np.uint64)
    low, high = (by_row * rungs(count)).sum(axis=0, dtype=np.uint64)
    return int(low), int(high)


def _odd(name: str, count: int) -> Constants:
    data = hashlib.shake_256(f"warmfleet block sum v1 {name}".encode()).digest(8 * count)
    return np.frombuffer(data, dtype="<u8") | np.uint64(1)
