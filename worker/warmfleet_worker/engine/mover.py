"""Whole blocks between a torch pool and memory beside it, summed in the kernel that moves them.

The sums are ``warmfleet_proto.checksum``'s, so they cover every byte between the pool's memory and wherever
the other end of the move makes them again: over a link to the host, or to another device.
"""

from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from warmfleet_kernels import fetch
from warmfleet_kernels.movement import Memory, SumConstants, gather_blocks, move_blocks, scatter_blocks
from warmfleet_proto import checksum

Sums = npt.NDArray[np.uint64]
"""[blocks, 2]"""

Event = torch.cuda.Event | None  # none without a device

Moving = Callable[[], Sums]
"""Waits for what was launched; the sums of what was moved."""


def sum_constants(block_bytes: int, device: torch.device) -> SumConstants:
    parts = checksum.keys(), checksum.rungs(checksum.rows_of(block_bytes))
    return SumConstants(*(torch.from_numpy(part.view(np.int64)).to(device) for part in parts))


class Mover:
    """For one thread at a time, on a stream of its own.

    Readable blocks were finished before they became readable, and nobody reads written ones before they
    were waited for: so no event joins the stream with the steps'.
    """

    def __init__(self, pool: Tensor, constants: SumConstants | None) -> None:
        """``pool`` [blocks, ...]; without constants nothing is summed, and sums are zeros."""
        self.pool = pool.view(len(pool), -1).view(torch.int32)
        self._constants = constants
        self.stream = torch.cuda.Stream(pool.device) if pool.is_cuda else None  # type: ignore[no-untyped-call]

    def gather(self, blocks: Sequence[int], slab: Memory) -> Moving:
        """Blocks of the pool to the beginning of ``slab``."""
        with self.current():
            sums = gather_blocks(self.pool, self._table(blocks), slab, self._constants)
            return self._moving(len(blocks), sums)

    def scatter(self, slab: Memory, blocks: Sequence[int]) -> Moving:
        """The way back. The blocks differ."""
        with self.current():
            sums = scatter_blocks(slab, self.pool, self._table(blocks), self._constants)
            return self._moving(len(blocks), sums)

    def move(self, memory: Memory, taken: Sequence[int], blocks: Sequence[int]) -> Moving:
        """Blocks ``taken`` of memory that the device can read to these of the pool, which differ."""
        with self.current():
            tables = self._table(taken), self._table(blocks)
            sums = move_blocks(memory, tables[0], self.pool, tables[1], self._constants)
            return self._moving(len(blocks), sums)

    @contextmanager
    def current(self) -> Iterator[None]:
        """What is launched within goes to this stream, and its device is the thread's own. Where it raises,
        nothing of it is under way any more: nobody is left to wait for it, and its blocks may be another's
        next."""
        with torch.cuda.stream(self.stream):  # of None: nothing
            try:
                yield
            except BaseException:
                self.wait()
                raise

    def mark(self) -> Event:
        """Of what was launched so far."""
        return None if self.stream is None else self.stream.record_event()

    def after(self, mark: Event) -> None:
        """What is launched from now on waits for it, on the device."""
        if mark is not None and self.stream is not None:
            self.stream.wait_event(mark)

    def wait(self) -> None:
        """For all that was launched."""
        if self.stream is not None:
            self.stream.synchronize()

    def _table(self, blocks: Sequence[int]) -> Tensor:
        """Not from pinned memory: so the driver has its own copy when this returns."""
        table = torch.frombuffer(array("i", blocks), dtype=torch.int32)
        return table.to(self.pool.device, non_blocking=True)

    def _moving(self, count: int, sums: Tensor | None) -> Moving:
        told = torch.zeros((count, 2), dtype=torch.int64) if sums is None else fetch(sums)
        done = self.mark()

        def finish() -> Sums:
            if done is not None:
                done.synchronize()
            return told.numpy().view(np.uint64)

        return finish
