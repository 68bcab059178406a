"""How much work has lately come for a prefix, and whether its holders are enough for it.

Prefixes are marked at a few depths. One that has outgrown its holders, asking more of each than all such
prefixes ask of the mean worker, should be computed elsewhere too: that relieves the holders instead of
delaying others. It counts as outgrown by degrees, as the work that has come approaches what a copy costs
(whether to rent or to buy skis), so that a short burst of siblings makes no copy. Prompts that share nothing
are not counted: they go where there is room, and in a young fleet they would hide what is hot. A prefix that
has just appeared has asked for little yet: what has come counts over the time that it took to come.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from functools import lru_cache
from math import exp

from warmfleet_router.prices.traffic import FIRST_S

MEMORY_S = 10.0
DEPTHS = tuple(1024 << i for i in range(12))  # tokens; to two million
MAX_PREFIXES = 4096  # the longest unused go first


_Work = tuple[float, float, float]  # seconds, fading by 1/e every MEMORY_S; when so many; when the first came


class Demand:
    """Demand for the prefixes of one group of workers. ``keys`` are of a prompt's blocks, in order."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._all: _Work = (0.0, 0.0, 0.0)
        self._prefixes: dict[int, _Work] = {}  # by key of their last block

    def __len__(self) -> int:
        return len(self._prefixes)

    def placed(self, keys: Sequence[int], shared: int, work_s: float, now: float) -> None:
        """A request whose first ``shared`` tokens some worker holds; ``work_s`` is left to do there."""
        marked, prefixes, new = ends(self._block_size, shared), self._prefixes, (0.0, now, now)
        if not marked:
            return
        self._all = _then(self._all, now) + work_s, now, self._all[2]
        for end in marked:
            key = keys[end]
            seconds, at, since = prefixes.pop(key, new)
            prefixes[key] = seconds * exp((at - now if now > at else 0.0) / MEMORY_S) + work_s, now, since
        while len(prefixes) > MAX_PREFIXES:
            del prefixes[next(iter(prefixes))]

    def outgrown(
        self,
        keys: Sequence[int],
        shared: int,
        holders: int,
        workers: int,
        copy_s: float,
        own_s: float,
        now: float,
    ) -> float:
        """How much of what a copy takes the deepest marked prefix within ``shared`` tokens asks of each of
        its ``holders`` in MEMORY_S, 0 to 1, with ``own_s`` of the request at hand; 0 while it has asked no
        more of them than all marked ones of each of the ``workers``."""
        marked = ends(self._block_size, shared)
        work = self._prefixes.get(keys[marked[0]]) if marked else None
        if work is None:
            return 0.0
        each = (_then(work, now) + own_s) / (holders or 1)
        if each <= (_then(self._all, now) + own_s) / workers:
            return 0.0
        each /= 1.0 - exp(-(max(now - work[2], 0.0) + FIRST_S) / MEMORY_S)
        return 1.0 if each >= copy_s else each / copy_s

    def depth(self, shared: int) -> int:
        """The deepest mark within ``shared`` tokens; who holds that much holds the prefix."""
        within = depths(self._block_size, shared)
        return within[-1] if within else shared


def depths(block_size: int, shared: int) -> Sequence[int]:
    """The marked ones within ``shared`` tokens."""
    return DEPTHS[bisect_left(DEPTHS, block_size) : bisect_right(DEPTHS, shared)]


@lru_cache(maxsize=4096)  # a placement asks three times
def ends(block_size: int, shared: int) -> Sequence[int]:
    """Positions of the blocks that end at the marked depths within ``shared`` tokens, the deepest first."""
    return tuple(depth // block_size - 1 for depth in depths(block_size, shared)[::-1])


def marks(block_size: int, keys: Sequence[int], shared: int) -> list[int]:
    """Keys of those blocks."""
    return [keys[end] for end in ends(block_size, shared)]


def _then(work: _Work, now: float) -> float:
    seconds, at, _ = work
    return seconds * exp((at - now if now > at else 0.0) / MEMORY_S)
