"""How often a group of workers misses what it has evicted, over about as many evictions as it has blocks.

For the group and not for each worker: a worker that seldom misses its blocks would look cheap and draw all
that is new, and would then hold even less that is used again (LOG.md).
"""

from math import exp


class Pressure:
    __slots__ = ("_evictions", "_late_hits", "reuse")

    def __init__(self) -> None:
        self.reuse = 0.0  # chance that an evicted block would have been used again, 0 to 1
        self._evictions = 0.0
        self._late_hits = 0.0

    def observe(self, evictions: int, late_hits: int, blocks: int) -> None:
        """One worker's evictions and late hits since its last report. ``blocks`` is what all caches hold
        together."""
        if evictions <= 0:
            return
        keep = exp(-evictions / max(blocks, 1))
        self._evictions = keep * self._evictions + evictions
        self._late_hits = keep * self._late_hits + max(late_hits, 0)
        self.reuse = self._late_hits / (self._late_hits + self._evictions)
