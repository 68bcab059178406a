"""Prefixes of live bookings: what a worker is about to hold, before its events say so.

A burst of sibling prompts lands together, because the first one's booking counts as overlap for
the next. To cost microseconds, chains are marked at some depths only, closer near the root.
"""

from bisect import bisect_right
from collections.abc import Sequence

STEP_TOKENS = 128  # between marks near the root
LEVEL = 64  # marks before the step doubles
MAX_MARKS = 200_000  # bookings beyond are not marked: a missed hint
MAX_DEPTH_BLOCKS = 1 << 24


class BookedPrefixes:
    """Of one group of workers, who go by their numbers in its index. Keys are 64-bit numbers."""

    def __init__(self, block_size: int) -> None:
        self._depths = _grid(max(1, STEP_TOKENS // block_size))
        self._marks: dict[int, dict[int, int]] = {}  # key -> {worker: bookings}

    def __len__(self) -> int:
        return len(self._marks)

    def add(self, worker: int, keys: Sequence[int]) -> list[int]:
        """Marks a chain; what is returned takes the marks away again."""
        if len(self._marks) >= MAX_MARKS:
            return []
        marked = [keys[depth - 1] for depth in self._depths_of(len(keys))]
        for key in marked:
            workers = self._marks.setdefault(key, {})
            workers[worker] = workers.get(worker, 0) + 1
        return marked

    def remove(self, worker: int, marked: Sequence[int]) -> None:
        for key in marked:
            workers = self._marks[key]
            workers[worker] -= 1
            if not workers[worker]:
                del workers[worker]
                if not workers:
                    del self._marks[key]

    def overlaps(self, keys: Sequence[int]) -> dict[int, int]:
        """Leading blocks by worker, rounded down to a mark."""
        found: dict[int, int] = {}
        if not self._marks:
            return found
        depths = self._depths_of(len(keys))
        deepest = self._deepest(keys, depths)
        if not deepest:
            return found
        expected = len(self._marks[keys[depths[0] - 1]])  # whoever has a deep mark has the first one
        for depth in reversed(depths[:deepest]):
            for worker in self._marks.get(keys[depth - 1], ()):
                found.setdefault(worker, depth)
            if len(found) == expected:
                break
        return found

    def _deepest(self, keys: Sequence[int], depths: Sequence[int]) -> int:
        """How many of the depths are marked; a chain that has one has all above it, save its own end."""
        if not depths or keys[depths[0] - 1] not in self._marks:
            return 0
        if keys[depths[-1] - 1] in self._marks:
            return len(depths)
        low, high = 1, len(depths) - 1
        while low < high:
            middle = (low + high + 1) // 2
            if keys[depths[middle - 1] - 1] in self._marks:
                low = middle
            else:
                high = middle - 1
        return low

    def _depths_of(self, blocks: int) -> list[int]:
        """The grid up to the chain's end, and the end itself: equal prompts match in full."""
        depths = self._depths[: bisect_right(self._depths, blocks)]
        if blocks and (not depths or depths[-1] != blocks):
            depths.append(blocks)
        return depths


def _grid(step: int) -> list[int]:
    depths: list[int] = []
    depth = 0
    while depth < MAX_DEPTH_BLOCKS:
        for _ in range(LEVEL):
            depth += step
            depths.append(depth)
        step *= 2
    return depths
