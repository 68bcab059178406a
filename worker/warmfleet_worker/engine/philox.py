"""Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).

Counter-based: a number is a function of (key, counter), so a request can be resumed anywhere, on any
device, with the numbers it would have drawn. Computed on the host, where a step needs one a token.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

ROUNDS = 10
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)

Words = npt.NDArray[np.uint64]


def philox(counter: Words, key: Words) -> Words:
    """Four 32-bit words for each counter; ``counter[4, n]`` and ``key[2, n]`` give ``[4, n]``."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        first, second = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1 = (second >> _HALF) ^ c1 ^ k0, second & _LOW
        c2, c3 = (first >> _HALF) ^ c3 ^ k1, first & _LOW
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return np.stack((c0, c1, c2, c3))


def first_words(draws: Sequence[tuple[int, int, int]]) -> npt.NDArray[np.uint32]:
    """Random words, one for each (seed, position, choice): the first of the block whose key is the 64-bit
    seed and whose counter is (position, choice, 0, 0)."""
    seeds, positions, choices = np.array(draws, dtype=np.uint64).T
    zeros = np.zeros_like(seeds)
    counter = np.stack((positions & _LOW, choices, zeros, zeros))
    words = philox(counter, np.stack((seeds & _LOW, seeds >> _HALF)))
    first: npt.NDArray[np.uint32] = words[0].astype(np.uint32)
    return first
