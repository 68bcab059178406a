"""Both ends of a transport without workers: blocks in memory, and a haul that collects them."""

import os
from collections import deque
from collections.abc import Callable, Sequence
from threading import Lock, Thread

from warmfleet_proto.errors import Corrupt, WorkerLost
from warmfleet_worker.transfer.frames import block_sum
from warmfleet_worker.transfer.slabs import Slabs
from warmfleet_worker.transfer.transport import Fill, Filling, Parcel, Piece

LEASE, SECRET = 7, bytes(range(16))


class Blocks:
    """A Lot of blocks in memory, seeded with their numbers, and the Shelf that holds it."""

    def __init__(self, blocks: Sequence[bytes | memoryview]) -> None:
        self.memory = [memoryview(block) for block in blocks]
        self.sums = [block_sum(block, seed) for seed, block in enumerate(self.memory)]
        self.block_bytes = len(self.memory[0])
        self.blocks = len(self.memory)
        self.live = True

    def open(self, lease: int, secret: bytes) -> "Blocks | None":
        return self if (lease, secret) == (LEASE, SECRET) else None

    def fetch(self, first: int, count: int, slab: memoryview) -> Parcel | None:
        if not self.live:
            return None
        return Parcel(self.memory[first : first + count], self.sums[first : first + count])

    def give(self, first: int, count: int, fill: Fill) -> Filling:
        """Its blocks are those of an engine's pool with the same numbers."""
        numbers = range(first, first + count)
        return fill(numbers, numbers) if self.live else lambda: None


def to_their_end(pull: Callable[[], None], streams: int) -> list[Exception]:
    """So many pulls at once; what they raised."""
    errors: list[Exception] = []

    def stream() -> None:
        try:
            pull()
        except (WorkerLost, Corrupt) as error:
            errors.append(error)

    threads = [Thread(target=stream) for _ in range(streams)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(15)
        assert not thread.is_alive()
    return errors


def random_blocks(count: int, size: int) -> list[bytes]:
    return [os.urandom(size) for _ in range(count)]


class Collected:
    """A Haul that keeps a copy of every good block; ``keep`` false: only counts."""

    def __init__(self, blocks: int, block_bytes: int, slabs: Slabs, keep: bool = True) -> None:
        self.block_bytes, self.blocks = block_bytes, blocks
        self.got: dict[int, bytes] = {}
        self.good = self.bad = self.missed = self.received_bytes = 0
        self.over = False
        self._slabs = slabs
        self._keep = keep
        self._wanted = deque([(0, blocks)])
        self._most = blocks
        self._lock = Lock()
        assert slabs.join(self)

    def slab(self) -> memoryview | None:
        return self._slabs.take(self) if self._wanted else None

    def give_back(self, slab: memoryview) -> None:
        self._slabs.give_back(self, slab)

    def take(self, most: int) -> Piece | None:
        if self._slabs.exceeded(self):
            return None
        with self._lock:
            if not self._wanted:
                return None
            first, left = self._wanted.popleft()
            count = min(left, most, self._most)
            if left > count:
                self._wanted.appendleft((first + count, left - count))
            numbers = range(first, first + count)
            return Piece(first, numbers, numbers)

    def one_by_one(self) -> None:
        """Each block a piece of its own."""
        self._most = 1

    def received(self, count: int) -> None:
        self.received_bytes += count

    def landed(self, piece: Piece, good: int, slab: memoryview | None = None) -> None:
        size = self.block_bytes
        with self._lock:
            self.good += good
            self.bad += piece.blocks - good
        if self._keep:
            assert slab is not None
            for i in range(good):
                self.got[piece.first + i] = bytes(slab[i * size : (i + 1) * size])

    def lost(self, piece: Piece) -> None:
        with self._lock:
            self.missed += piece.blocks

    def stop(self) -> None:
        self.over = True
        self._slabs.leave(self)
