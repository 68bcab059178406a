"""What the index's tests share: a plain model of it, chains of keys, and both implementations."""

import random
from typing import Any

import pytest
from warmfleet_router.index import index, index_python
from warmfleet_router.index.index import Overlap
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
        best: list[int] = []
        for k in split(packed):
            if k not in self.held[worker]:
                break
            best.append(min(self.held[worker][k]))
        return Overlap(worker, len(best), *(best.count(tier) for tier in (DEVICE, HOST, DISK)))

    def lookup(self, packed: bytes, booked: list[float], top: int) -> list[Overlap]:
        every = [self.overlap(worker, packed) for worker in self.held]
        most = sorted((o for o in every if o.blocks), key=lambda o: (-o.blocks, booked[o.worker], o.worker))
        idle = sorted(every, key=lambda o: (booked[o.worker], o.worker))
        return list(dict.fromkeys(most[:top] + idle[:top]))
