"""What a worker that announces nothing may hold: a model of its cache, corrected by what it delivers.

Blocks of prompts that it has computed are held; beyond its capacity the least recently used go first,
children before parents. Every request tells how much of a known prefix was really there: a block that
was gone after fewer others than the capacity, or there after more, moves the capacity towards the
truth. Pure.
"""

from array import array
from bisect import bisect_left, bisect_right
from collections import Counter, OrderedDict, deque
from collections.abc import Mapping, Sequence
from itertools import chain

from warmfleet_proto.limits import KEY_BYTES

from warmfleet_router.index.prefixes import LEVEL, grid

START_BLOCKS = 65_536  # of a worker that does not tell its size
LEAST_BLOCKS = 16
MOST_BLOCKS = 1 << 18
GHOSTS = 3.0  # blocks remembered after they are taken to be evicted, in capacities
MOST_GHOSTS = 1 << 16
PULL = 0.3  # towards each contradiction, of the ratio
LEARN = 0.1  # of the confidence, a request
SPREAD = 512  # buckets in a capacity: distances are known to that share of it
MOST_BUCKETS = 8 * SPREAD
NEVER = -1


class _Unit:
    """Some blocks in a row, more of them the deeper they are. Known by the key of the last."""

    __slots__ = ("blocks", "bucket", "first", "keys")

    def __init__(self, keys: bytes, first: int | None) -> None:
        self.bucket = NEVER  # of its last use
        self.keys = keys  # packed
        self.blocks = len(keys) // KEY_BYTES
        self.first = first  # key; None: it is one block by the grid, and in no other unit

    @property
    def each(self) -> memoryview:
        return memoryview(self.keys).cast("Q")


class Approximate:
    """One worker's. ``capacity`` in blocks is where it begins; 0: not known."""

    def __init__(self, capacity: int = 0) -> None:
        self.capacity = _bounded(capacity or START_BLOCKS)
        self.confidence = 1.0  # delivered of what was taken to be held
        self.forget()

    def forget(self) -> None:
        """It has restarted. What is known of its size stays."""
        # The least recently used first.
        self._held: OrderedDict[int, _Unit] = OrderedDict()
        self._ghosts: OrderedDict[int, _Unit] = OrderedDict()
        self._held_blocks = self._ghost_blocks = 0
        self._begun: dict[int, _Unit | Counter[int]] = {}  # by first key: who is held, or how many have each
        self._counts = deque([0])  # blocks by bucket; the last one is being filled
        self._first = 0  # number of the first bucket

    def __len__(self) -> int:
        """Blocks."""
        return self._held_blocks

    @property
    def clock(self) -> int:
        """Blocks used from now on are in buckets from here on."""
        return self._first + len(self._counts) - 1

    def delivered(self, keys: Sequence[int], cached: int, since: int, roughly: bool = False) -> None:
        """A prompt found ``cached`` of its leading blocks there; ``roughly``: give or take a quarter.

        What was used after the clock ``since``, when the prompt was placed, says nothing: it may have come
        too late.
        """
        ends = grid(1, len(keys))
        if held := self._leading(keys, ends, self._held):
            self.confidence += LEARN * (min(cached / ends[held - 1], 1.0) - self.confidence)
        units = self._leading(keys, ends, self._held, self._ghosts)
        known = ends[units - 1] if units else 0
        # Workers compute the last block of a prompt that they hold whole, some of them one more.
        there = cached >= known - 1 - (known // 4 if roughly else 0)
        telling = min(cached, known) - 1 if there else cached
        if telling < 0 or not known:
            return
        key = keys[ends[bisect_right(ends, telling)] - 1]
        unit = self._held.get(key) or self._ghosts[key]
        if unit.bucket < since:
            self._contradict(self._distance(unit.bucket), there)

    def used(self, keys: Sequence[int], packed: bytes) -> bytes:
        """It has computed a prompt, all of whose blocks it holds now; ``packed`` are the same keys. The
        answer are the keys of what it gave up, packed."""
        self._next_bucket()
        ends = grid(1, len(keys))
        known = self._leading(keys, ends, self._held, self._ghosts)
        if known < len(ends):
            self._absorb(keys[ends[known - 1] if known else 0 : ends[known]])
        held, counts, first, clock = self._held, self._counts, self._first, self.clock
        get, move_to_end = held.get, held.move_to_end
        end = len(keys)
        for start in (*ends[-2::-1], 0) if ends else ():  # the root is the last to go
            key = keys[end - 1]
            unit = get(key)
            if unit is not None:
                move_to_end(key)
                counts[unit.bucket - first] -= unit.blocks
            else:
                unit = self._pop(key) or _Unit(
                    packed[start * KEY_BYTES : end * KEY_BYTES], keys[start] if start >= LEVEL else None
                )
                held[key] = unit
                self._held_blocks += unit.blocks
                self._share(unit)
            unit.bucket = clock
            end = start
        counts[-1] += len(keys)
        return self._evict()

    def _leading(self, keys: Sequence[int], ends: Sequence[int], *among: Mapping[int, _Unit]) -> int:
        """How many units are known; whose parent is gone is gone too."""
        if ends and any(keys[ends[-1] - 1] in units for units in among):
            return len(ends)
        return bisect_left(
            range(len(ends)), True, key=lambda n: all(keys[ends[n] - 1] not in units for units in among)
        )

    def _absorb(self, keys: Sequence[int]) -> None:
        """The end of a shorter prompt becomes part of the unit that goes on after it."""
        for key in keys[:-1]:
            self._pop(key)

    def _pop(self, key: int) -> _Unit | None:
        unit = self._held.pop(key, None)
        if unit is not None:
            self._held_blocks -= unit.blocks
            self._left(unit)
        else:
            unit = self._ghosts.pop(key, None)
            if unit is None:
                return None
            self._ghost_blocks -= unit.blocks
        self._counts[unit.bucket - self._first] -= unit.blocks
        return unit

    # ---- prompts that part within a unit: what is before that is in several

    def _share(self, unit: _Unit) -> None:
        first = unit.first
        if first is None:
            return
        others = self._begun.setdefault(first, unit)
        if others is unit:
            return
        if isinstance(others, _Unit):
            others = self._begun[first] = Counter(others.each)
        others.update(unit.each)

    def _left(self, unit: _Unit) -> bytes:
        """It is held no longer; the packed keys that no other unit has."""
        first = unit.first
        if first is None:
            return unit.keys
        others = self._begun[first]
        if isinstance(others, _Unit):
            del self._begun[first]
            return unit.keys
        others.subtract(unit.each)
        gone = array("Q", [key for key in unit.each if not others[key]])
        for key in gone:
            del others[key]
        if not others:
            del self._begun[first]
        return gone.tobytes()

    def _evict(self) -> bytes:
        gone = []
        while self._held_blocks > self.capacity:
            key, unit = self._held.popitem(last=False)
            self._ghosts[key] = unit
            self._held_blocks -= unit.blocks
            self._ghost_blocks += unit.blocks
            gone.append(self._left(unit))
        while self._ghost_blocks > min(GHOSTS * self.capacity, MOST_GHOSTS):
            _, unit = self._ghosts.popitem(last=False)
            self._ghost_blocks -= unit.blocks
            self._counts[unit.bucket - self._first] -= unit.blocks
        while len(self._counts) > 1 and not self._counts[0]:
            self._counts.popleft()
            self._first += 1
        return b"".join(gone)

    def _next_bucket(self) -> None:
        if self._counts[-1] > self.capacity / SPREAD:
            if len(self._counts) >= MOST_BUCKETS:
                self._compact()
            self._counts.append(0)

    def _compact(self) -> None:
        """Buckets of which everything has been used since go. The clock stays, so that what was used after
        some time still is."""
        full = [number for number, count in enumerate(self._counts, self._first) if count]
        first = self.clock + 1 - len(full)
        renamed = {number: first + n for n, number in enumerate(full)}
        for unit in chain(self._held.values(), self._ghosts.values()):
            unit.bucket = renamed[unit.bucket]
        self._counts = deque(self._counts[number - self._first] for number in full)
        self._first = first

    def _distance(self, bucket: int) -> int:
        """Blocks used after those of a bucket, and half of them."""
        behind = bucket - self._first
        after = sum(count for number, count in enumerate(self._counts) if number > behind)
        return after + self._counts[behind] // 2

    def _contradict(self, distance: int, there: bool) -> None:
        """A block was there, or not, after ``distance`` others."""
        if (distance > self.capacity) == there:
            ratio = max(distance, 1) / self.capacity
            self.capacity = _bounded(self.capacity * ratio**PULL)


def _bounded(blocks: float) -> float:
    return min(max(blocks, LEAST_BLOCKS), MOST_BLOCKS)
