"""What a worker that announces nothing may hold: a model of its cache, corrected by what it delivers.

Blocks of prompts that it has computed are held; beyond its capacity the least recently used go first,
children before parents. Every request tells how much of a known prefix was really there: a block that
was gone after fewer others than the capacity, or there after more, moves the capacity towards the
truth. Pure.
"""

from collections import OrderedDict, deque
from collections.abc import Sequence

START_BLOCKS = 65_536  # of a worker that does not tell its size
LEAST_BLOCKS = 16
MOST_BLOCKS = 1 << 18
GHOSTS = 3.0  # blocks remembered after they are taken to be evicted, in capacities
PULL = 0.3  # towards each contradiction, of the ratio
LEARN = 0.1  # of the confidence, a request
SPREAD = 512  # buckets in a capacity: distances are known to that share of it
NEVER = -1


class Approximate:
    """One worker's. ``capacity`` in blocks is where it begins; 0: not known."""

    def __init__(self, capacity: int = 0) -> None:
        self.capacity = float(_bounded(capacity or START_BLOCKS))
        self.confidence = 1.0  # delivered of what was taken to be held
        # Block -> the bucket of its last use; the least recently used first.
        self._held: OrderedDict[int, int] = OrderedDict()
        self._ghosts: OrderedDict[int, int] = OrderedDict()
        self._counts: deque[int] = deque([0])  # blocks by bucket; the last one is being filled
        self._first = 0  # number of the first bucket

    def __len__(self) -> int:
        return len(self._held)

    @property
    def clock(self) -> int:
        """Blocks used from now on are in buckets from here on."""
        return self._first + len(self._counts) - 1

    def forget(self) -> None:
        """It has restarted. What is known of its size stays."""
        self._held.clear()
        self._ghosts.clear()
        self._counts = deque([0])
        self._first = 0

    def delivered(self, keys: Sequence[int], cached: int, since: int) -> None:
        """A prompt found ``cached`` of its leading blocks there. What was used after the clock ``since``,
        when the prompt was placed, says nothing: it may have come too late."""
        held = known = 0
        for key in keys:
            if key in self._held:
                held += held == known
            elif key not in self._ghosts:
                break
            known += 1
        if held:
            self.confidence += LEARN * (min(cached / held, 1.0) - self.confidence)
        # Workers compute the last block of a prompt that they hold whole, some of them one more.
        there = cached >= known - 1
        telling = min(cached, known) - 1 if there else cached
        if telling < 0 or not known:
            return
        bucket = self._bucket(keys[telling])
        if bucket < since:
            self._contradict(self._distance(bucket), there)

    def used(self, keys: Sequence[int]) -> list[int]:
        """It has computed a prompt, all of whose blocks it holds now. The answer is what it gave up."""
        self._next_bucket()
        clock = self.clock
        for key in reversed(keys):  # the root is the last to go
            bucket = self._held.pop(key, NEVER)
            if bucket == NEVER:
                bucket = self._ghosts.pop(key, NEVER)
            if bucket != NEVER:
                self._counts[bucket - self._first] -= 1
            self._held[key] = clock
        self._counts[-1] += len(keys)
        return self._evict()

    def _evict(self) -> list[int]:
        gone = []
        while len(self._held) > self.capacity:
            key, bucket = self._held.popitem(last=False)
            self._ghosts[key] = bucket
            gone.append(key)
        while len(self._ghosts) > GHOSTS * self.capacity:
            _, bucket = self._ghosts.popitem(last=False)
            self._counts[bucket - self._first] -= 1
        while len(self._counts) > 1 and not self._counts[0]:
            self._counts.popleft()
            self._first += 1
        return gone

    def _next_bucket(self) -> None:
        if self._counts[-1] > self.capacity / SPREAD:
            self._counts.append(0)

    def _bucket(self, key: int) -> int:
        return self._held.get(key, self._ghosts.get(key, NEVER))

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
