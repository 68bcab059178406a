"""Prefixes of live bookings: what a worker is about to hold, before its events say so.

A burst of sibling prompts lands together, because the first one's booking counts as overlap for
the next. To cost microseconds, chains are marked at some depths only, closer near the root.
"""

from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache

STEP_TOKENS = 128  # between marks near the root
LEVEL = 64  # marks before the step doubles
MOST_WORKERS = 16  # found for a prompt: a root that all prompts share must not make all workers candidates
MAX_MARKS = 200_000  # beyond, a booking is not marked: what its worker is about to hold is not foreseen


class BookedPrefixes:
    """Prefixes of the live bookings of one group. Workers go by their numbers in its index, keys are 64-bit
    numbers."""

    def __init__(self, block_size: int) -> None:
        self._step = max(1, STEP_TOKENS // block_size)
        self._marks: dict[int, dict[int, int]] = {}  # key -> {worker: bookings}

    def __len__(self) -> int:
        return len(self._marks)

    def add(self, worker: int, keys: Sequence[int], held: int = 0) -> list[int]:
        """Marks a chain of which the worker holds ``held`` blocks; the answer takes the marks away again."""
        if len(self._marks) >= MAX_MARKS:
            return []
        depths = grid(self._step, len(keys))
        first = bisect_right(depths, held)
        marked = [keys[depth - 1] for depth in depths[first:]]
        if first:  # the first depth is always marked: without it nobody looks further
            marked.insert(0, keys[depths[0] - 1])
        for key in marked:
            workers = self._marks.get(key)
            if workers is None:
                self._marks[key] = {worker: 1}
            else:
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
        """Leading blocks by worker, rounded down to a mark; of the MOST_WORKERS that share most of them."""
        depths, marks = grid(self._step, len(keys)), self._marks
        found: dict[int, int] = {}
        root = marks.get(keys[depths[0] - 1]) if depths else None
        if root is None:
            return found
        wanted = min(len(root), MOST_WORKERS)
        for depth in reversed(depths):
            workers = marks.get(keys[depth - 1])
            if workers is not None:
                for worker in workers:
                    found.setdefault(worker, depth)
                    if len(found) == wanted:
                        return found
        return found


@lru_cache(maxsize=1024)
def grid(step: int, blocks: int) -> tuple[int, ...]:
    """The grid up to the chain's end, and the end itself: equal prompts match in full."""
    depths: list[int] = []
    depth = step
    while depth < blocks:
        depths.append(depth)
        if len(depths) % LEVEL == 0:
            step *= 2
        depth += step
    return (*depths, blocks) if blocks else ()
