"""One pull as the transports' threads see it: which pieces are wanted, and into which blocks they go.

Blocks are written into the pool as they are verified, in whatever order the streams bring them; only a run
from the front counts as arrived. Once ``over``, and when no thread holds a piece, nothing more is written.
"""

from collections import deque
from collections.abc import Callable, Sequence
from threading import Lock

from warmfleet_worker.engine.base import Engine
from warmfleet_worker.transfer.frames import piece_blocks
from warmfleet_worker.transfer.slabs import Slabs
from warmfleet_worker.transfer.transport import Piece


class PoolHaul:
    """See ``transport.Haul``. ``on_arrival`` is called in a transport's thread."""

    def __init__(
        self,
        engine: Engine,
        slabs: Slabs,
        blocks: Sequence[int],
        seeds: Sequence[int],
        on_arrival: Callable[[], None],
    ) -> None:
        """``blocks`` of the pool, where the lease's go; ``seeds`` of their sums. Raises BlockingIOError when
        as many pulls are under way as there are slabs."""
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
        self._front = 0
        self._wanted = deque(_pieces(self.blocks, piece_blocks(engine.block_bytes)))
        if not slabs.join(self):
            raise BlockingIOError("too many pulls at once")

    @property
    def arrived(self) -> int:
        """Leading blocks that are in the pool."""
        return self._front

    @property
    def written(self) -> int:
        """Blocks that are in the pool, wherever."""
        return sum(self._whole)

    @property
    def pieces(self) -> int:
        return len(self._wanted)

    def take(self, wait: bool) -> Piece | None:
        if not self._wanted:
            return None
        slab = self._slabs.take(self, wait)
        if slab is None:
            return None
        with self._lock:
            if self._wanted and not self.over:
                first, count = self._wanted.popleft()
                return Piece(first, self._seeds[first : first + count], slab)
        self._slabs.give_back(self, slab)
        return None

    def received(self, count: int) -> None:
        with self._lock:
            self.received_bytes += count

    def landed(self, piece: Piece, good: int) -> None:
        if not self.over:
            self._engine.write_blocks(self._targets[piece.first : piece.first + good], piece.buffer)
            self._count(piece, good)
            self._on_arrival()
        self._slabs.give_back(self, piece.buffer)

    def lost(self, piece: Piece) -> None:
        with self._lock:
            self._wanted.appendleft((piece.first, piece.blocks))
        self._slabs.give_back(self, piece.buffer)

    def stop(self) -> None:
        """Nothing more is wanted; who waits for a slab goes."""
        self.over = True
        self._slabs.leave(self)

    def _count(self, piece: Piece, good: int) -> None:
        with self._lock:
            self.bad += piece.blocks - good
            self._whole[piece.first : piece.first + good] = b"\1" * good
            while self._front < self.blocks and self._whole[self._front]:
                self._front += 1
            if self.bad:
                self.over = True


def _pieces(blocks: int, most: int) -> list[tuple[int, int]]:
    return [(first, min(most, blocks - first)) for first in range(0, blocks, most)]
