"""How much work comes for a prefix, of late, and whether its holders are enough for it.

Prefixes are marked at a few depths. A copy made where it is needed serves all who come after: while a
prefix asks more of each of its holders than the mean worker is asked for by all such prefixes, copying it is
not work that delays others but work that relieves them. Copies are bought as skis are: the rent paid so far
counts against their price, so that a short burst of siblings makes none. What shares nothing is not counted:
it goes where there is room, and in a young fleet it would hide what is hot.
"""

from collections.abc import Iterator, Sequence
from math import exp
from typing import NamedTuple

MEMORY_S = 10.0
DEPTHS = [1024 << i for i in range(12)]  # tokens; to two million
MAX_PREFIXES = 4096  # the longest unused go first


class _Work(NamedTuple):
    """Seconds, fading by 1/e every MEMORY_S."""

    seconds: float
    at: float

    def then(self, now: float) -> float:
        return self.seconds * exp(-max(now - self.at, 0.0) / MEMORY_S)


class Demand:
    """Of one group of workers. ``keys`` are of a prompt's blocks, in order."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._all = _Work(0.0, 0.0)
        self._prefixes: dict[int, _Work] = {}  # by key of their last block

    def __len__(self) -> int:
        return len(self._prefixes)

    def placed(self, keys: Sequence[int], shared: int, work_s: float, now: float) -> None:
        """A request whose first ``shared`` tokens some worker holds; ``work_s`` is left to do there."""
        marked = list(marks(self._block_size, keys, shared))
        if marked:
            self._all = _Work(self._all.then(now) + work_s, now)
        for key in marked:
            before = self._prefixes.pop(key, None)
            self._prefixes[key] = _Work((before.then(now) if before else 0.0) + work_s, now)
        while len(self._prefixes) > MAX_PREFIXES:
            del self._prefixes[next(iter(self._prefixes))]

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
        """How much of what a copy takes the deepest marked prefix within ``shared`` tokens has asked of each
        of its ``holders``, 0 to 1, with ``own_s`` of the request at hand; 0 while it asks no more of them
        than all marked ones ask of each of the ``workers``."""
        key = next(marks(self._block_size, keys, shared), None)
        work = self._prefixes.get(key) if key is not None else None
        if work is None:
            return 0.0
        each = (work.then(now) + own_s) / max(holders, 1)
        if each <= (self._all.then(now) + own_s) / workers:
            return 0.0
        return 1.0 if each >= copy_s else each / copy_s

    def depth(self, shared: int) -> int:
        """The deepest mark within ``shared`` tokens; who holds that much holds the prefix."""
        return next((d for d in reversed(DEPTHS) if self._block_size <= d <= shared), shared)


def marks(block_size: int, keys: Sequence[int], shared: int) -> Iterator[int]:
    """Keys of the blocks at the marked depths within ``shared`` tokens, the deepest first."""
    for depth in reversed(DEPTHS):
        if block_size <= depth <= shared:
            yield keys[depth // block_size - 1]
