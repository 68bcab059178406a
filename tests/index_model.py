"""What the index's tests share: a plain model of it, chains of keys, and both implementations."""

import random
from collections.abc import Sequence
from itertools import takewhile
from typing import Any, NamedTuple

import pytest
from warmfleet_router.index import index, index_python
from warmfleet_router.index.seats import Seats

DEVICE, HOST, DISK = 1, 2, 3


class TwinIndex(index_python.Presence, Seats):
    """The Python twin, also where the native index was built."""

    def __init__(self, cap: int = 1_000_000) -> None:
        index_python.Presence.__init__(self, cap)
        Seats.__init__(self)


IMPLEMENTATIONS: list[Any] = [TwinIndex, index.Index] if index.native else [TwinIndex]
both = pytest.mark.parametrize("make", IMPLEMENTATIONS)


LONGEST = 2400  # blocks
CHAINS = [random.Random(chain).randbytes(8 * LONGEST) for chain in range(4)]


def keys(chain: int, start: int, stop: int) -> bytes:
    """Chain c is chain 0 up to position 8 c and its own from there."""
    return (CHAINS[0][: 64 * chain] + CHAINS[chain][64 * chain :])[8 * start : 8 * stop]


def split(packed: bytes) -> list[bytes]:
    return [packed[i : i + 8] for i in range(0, len(packed), 8)]


class Overlap(NamedTuple):
    """Leading blocks that a worker holds, and how many of them in lower tiers alone."""

    worker: int
    blocks: int
    lower: int = 0


def lookup(index: Any, packed: bytes | memoryview, booked: Sequence[float], *how: Any) -> list[Overlap]:
    """What an index's ``leading`` answers, in its order."""
    held, lower = index.leading(packed, booked, *how)
    assert all(lower.values()), "nothing is said of who has all on the device"
    assert lower.keys() <= held.keys()
    return [Overlap(worker, blocks, lower.get(worker, 0)) for worker, blocks in held.items()]


class Model:
    """Truth, as slowly as possible: which tiers of which worker hold a key."""

    def __init__(self) -> None:
        self.held: dict[int, dict[bytes, set[int]]] = {}

    def store(self, worker: int, tier: int, packed: bytes) -> None:
        for k in split(packed):
            self.held[worker].setdefault(k, set()).add(tier)

    def remove(self, worker: int, tier: int, packed: bytes) -> None:
        for k in split(packed):
            tiers = self.held[worker].get(k, set())
            tiers.discard(tier)
            if not tiers:
                self.held[worker].pop(k, None)

    def overlap(self, worker: int, packed: bytes) -> Overlap:
        leading = list(takewhile(bool, (self.held[worker].get(k) for k in split(packed))))
        return Overlap(worker, len(leading), sum(DEVICE not in tiers for tiers in leading if tiers))

    def lookup(self, packed: bytes, booked: list[float], top: int) -> list[Overlap]:
        every = [self.overlap(worker, packed) for worker in self.held]
        most = sorted((o for o in every if o.blocks), key=lambda o: (-o.blocks, booked[o.worker], o.worker))
        idle = sorted(every, key=lambda o: (booked[o.worker], o.worker))
        return list(dict.fromkeys(most[:top] + idle[:top]))
