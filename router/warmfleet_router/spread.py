"""Which of several routers a prompt goes to: the one that its root belongs to.

Prompts of one conversation meet the same books and booked prefixes then. Rendezvous hashing: without one
router the others keep their roots. A root that everybody shares must not make one router do it all: who has
had more than ``BOUND`` times its share of late, and a burst of siblings beyond it, passes the prompt on.
"""

from collections.abc import Sequence
from math import exp

import xxhash

BOUND = 1.25
BURST = 8
MEMORY_S = 10.0  # of what was placed of late


class Spread:
    """``names`` of the routers; they go by their number in it."""

    def __init__(self, names: Sequence[str]) -> None:
        self._seeds = [xxhash.xxh64_intdigest(name.encode()) for name in names]
        self._given = [0.0] * len(names)  # requests, fading by 1/e every MEMORY_S
        self._at = 0.0

    def order(self, root: int) -> list[int]:
        """All of them, the one that the 64-bit number belongs to first."""
        packed = root.to_bytes(8, "little")
        scores = [xxhash.xxh64_intdigest(packed, seed) for seed in self._seeds]
        return sorted(range(len(scores)), key=scores.__getitem__, reverse=True)

    def first(self, root: int, now: float, among: Sequence[int] = ()) -> int:
        """Who gets one more request, of ``among`` (none: all of them). Counts it."""
        keep = exp(-max(now - self._at, 0.0) / MEMORY_S)
        self._given, self._at = [given * keep for given in self._given], now
        ranked = [i for i in self.order(root) if not among or i in among]
        most = BOUND * sum(self._given[i] for i in ranked) / len(ranked) + BURST
        chosen = next((i for i in ranked if self._given[i] < most), ranked[-1])
        self._given[chosen] += 1.0
        return chosen
