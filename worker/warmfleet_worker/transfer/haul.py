"""One pull as the transports' threads see it: which pieces are wanted, and into which blocks they go.

Blocks come in whatever order the streams bring them. What counts as arrived is the whole run from the front
and, once the haul is turned, the whole run from the end. Once it is ``over`` and no thread holds a piece any
more, nothing is written to the pool.
"""

from collections import deque
from collections.abc import Callable, Sequence
from threading import Lock

from warmfleet_worker.engine.base import Engine
from warmfleet_worker.transfer.slabs import Slabs
from warmfleet_worker.transfer.transport import Piece


class PoolHaul:
    """See ``transport.Haul``. ``on_arrival`` is called in a transport's thread."""

    def __init__(
        self,
        engine: Engine,
        slabs: Slabs | None,
        blocks: Sequence[int],
        seeds: Sequence[int],
        on_arrival: Callable[[], None],
    ) -> None:
        """``blocks`` of the pool are where the lease's blocks go, ``seeds`` are of their sums. ``slabs`` is
        None for a transport that writes into the pool itself. Raises BlockingIOError if there are as many
        pulls under way as slabs."""
        self.block_bytes = engine.block_bytes
        self.blocks = len(blocks)
        self.received_bytes = 0
        self.bad = 0  # blocks that did not agree with their sums
        self.over = False
        self._engine = engine
        self._slabs = slabs
        self._targets = blocks
        self._seeds = seeds
        self._on_arrival = on_arrival
        self._lock = Lock()
        self._whole = bytearray(self.blocks)
        self._front = self._back = 0
        self._turned = False
        self._wanted = deque([(0, self.blocks)])  # runs of blocks: first and count
        if slabs is not None and not slabs.join(self):
            raise BlockingIOError("too many pulls at once")

    @property
    def arrived(self) -> int:
        """Leading blocks that are in the pool."""
        return self._front

    @property
    def back(self) -> int:
        """Trailing blocks that are in the pool, once it is turned."""
        return self._back

    def slab(self) -> memoryview | None:
        return self._slabs.take(self) if self._slabs is not None and self._wanted else None

    def give_back(self, slab: memoryview) -> None:
        if self._slabs is not None:
            self._slabs.give_back(self, slab)

    def take(self, most: int) -> Piece | None:
        if self._slabs is not None and self._slabs.exceeded(self):
            return None
        with self._lock:
            if not self._wanted or self.over:
                return None
            first, end = self._next(most)
            return Piece(first, self._seeds[first:end], self._targets[first:end])

    def received(self, count: int) -> None:
        with self._lock:
            self.received_bytes += count

    def landed(self, piece: Piece, good: int, slab: memoryview | None = None) -> None:
        if self.over:
            return
        if slab is not None:
            self._engine.write_blocks(piece.targets[:good], slab)
        self._count(piece, good)
        self._on_arrival()

    def lost(self, piece: Piece) -> None:
        with self._lock:
            (self._wanted.append if self._turned else self._wanted.appendleft)((piece.first, piece.blocks))

    def turn(self) -> None:
        """What has not been asked for yet is taken from the end on."""
        self._turned = True

    def stop(self) -> None:
        """Nothing more is wanted. Threads that wait for a slab get none."""
        self.over = True
        if self._slabs is not None:
            self._slabs.leave(self)

    def _next(self, most: int) -> tuple[int, int]:
        """First block and end of the next piece. Under the lock."""
        if self._turned:
            first, count = self._wanted.pop()
            if count > most:
                self._wanted.append((first, count - most))
            return first + max(count - most, 0), first + count
        first, count = self._wanted.popleft()
        if count > most:
            self._wanted.appendleft((first + most, count - most))
        return first, first + min(count, most)

    def _count(self, piece: Piece, good: int) -> None:
        with self._lock:
            self.bad += piece.blocks - good
            self._whole[piece.first : piece.first + good] = b"\1" * good
            missing = self._whole.find(0, self._front)
            self._front = min(missing if missing >= 0 else self.blocks, self.blocks - self._back)
            if self._turned:
                self._back = min(self.blocks - 1 - self._whole.rfind(0), self.blocks - self._front)
            if self.bad:
                self.over = True
