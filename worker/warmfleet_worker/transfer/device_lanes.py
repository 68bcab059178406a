"""Lanes of device memory: GPUs of one host, whose processes map each other's slabs.

The source gathers blocks into a slab, the target's kernel reads that over the link between the two devices
and scatters it into its pool at once. Each sums the words that pass through its registers: no copy of a
block is trusted that was not read from the very bytes that were summed.

A pool is not mapped itself: a peer then could read blocks that it was not granted.
"""

from collections.abc import Sequence
from threading import Lock
from typing import Protocol

import numpy as np
from torch import Tensor

from warmfleet_worker.engine.mover import Mover, Sums, sum_constants
from warmfleet_worker.transfer.cuda_memory import CudaMemory
from warmfleet_worker.transfer.frames import SUM_BYTES
from warmfleet_worker.transfer.lane import Landing, Shape
from warmfleet_worker.transfer.tcp_stream import TcpStream
from warmfleet_worker.transfer.transport import Filling, Lot

SLABS = 3
SLAB_BYTES = 256 << 20  # what a slab costs both ends in calls is less than it takes on its way
_ALIGNED = 256


class DeviceMemory(Protocol):
    """Memory outside torch's allocator, whose parts cannot be shared by themselves."""

    def allocate(self, size: int) -> int:
        """Its address. Raises MemoryError, OSError."""

    def free(self, address: int) -> None: ...

    def show(self, stream: TcpStream, address: int) -> None:
        """Sends what opens it in another process."""

    def open(self, stream: TcpStream, size: int) -> int:
        """The address of what a peer shows. Raises WorkerLost when it cannot be had, or is less than ``size``
        bytes."""

    def leave(self, address: int) -> None:
        """What was opened is not used any more."""

    def close(self) -> None:
        """Nor anything that was kept for later."""


class DeviceLanes:
    """See ``lane.Lanes``. ``pool`` [blocks, ...] lies where ``memory`` does."""

    name = "cuda"
    leaves_the_host = False
    streams = 1  # one thread keeps the link busy

    def __init__(self, pool: Tensor, memory: DeviceMemory, shape: Shape | None = None) -> None:
        self.pool = pool
        self.memory = memory
        self._shape = shape or _shape(pool[0].nbytes)
        self.constants = sum_constants(pool[0].nbytes, pool.device)
        self._movers: list[Mover] = []
        self._lock = Lock()

    @classmethod
    def of_cuda(cls, pool: Tensor) -> "DeviceLanes":
        made = cls(pool, CudaMemory(pool.device.index or 0))
        made.warm_up()
        return made

    def warm_up(self) -> None:
        """Compiles and records what moves blocks. The first pull would wait for it, and seem slower than over
        other transports, which would be taken for the next minute then."""
        mover = self.take_mover()
        mover.prepare(gathers=self._shape.slabs, scatters=self._shape.slabs)
        self.give_back(mover)

    def make(self) -> "DeviceLane":
        return DeviceLane(self, self.memory, self._shape)

    def open(self, stream: TcpStream, shape: Shape) -> "DeviceWindow":
        return DeviceWindow(self, self.memory, stream, shape)

    def close(self) -> None:
        """Nothing that peers showed is looked into any more."""
        self.memory.close()

    def take_mover(self) -> Mover:
        """A mover, to be given back."""
        with self._lock:
            if self._movers:
                return self._movers.pop()
        most = self._shape.slab_bytes // self.pool[0].nbytes
        return Mover(self.pool, self.constants, most)

    def give_back(self, mover: Mover) -> None:
        with self._lock:
            self._movers.append(mover)


class DeviceLane:
    """See ``lane.Lane``."""

    def __init__(self, lanes: DeviceLanes, memory: DeviceMemory, shape: Shape) -> None:
        self.shape = shape
        self._memory = memory
        self._mover = lanes.take_mover()  # first: it may fail, and needs no giving back
        self._address = memory.allocate(shape.slabs * shape.slab_bytes)

    def show(self, stream: TcpStream) -> None:
        self._memory.show(stream, self._address)

    def fill(self, slab: int, lot: Lot, first: int, count: int) -> Filling:
        address = self._address + slab * self.shape.slab_bytes

        def begin(blocks: Sequence[int], seeds: Sequence[int]) -> Landing:
            moving = self._mover.gather(blocks, address)
            return lambda: seeded(moving(), seeds)

        return lot.give(first, count, begin)

    def close(self) -> None:
        self._memory.free(self._address)


class DeviceWindow:
    """See ``lane.Window``."""

    def __init__(self, lanes: DeviceLanes, memory: DeviceMemory, stream: TcpStream, shape: Shape) -> None:
        """Raises WorkerLost."""
        self._lanes = lanes
        self._memory = memory
        self._shape = shape
        self._mover = lanes.take_mover()  # first, as a lane does
        self._address = memory.open(stream, shape.slabs * shape.slab_bytes)

    def start(self, slab: int, targets: Sequence[int], seeds: Sequence[int]) -> Landing:
        moving = self._mover.scatter(self._address + slab * self._shape.slab_bytes, targets)
        return lambda: seeded(moving(), seeds)

    def close(self) -> None:
        """Nothing lands any more."""
        self._mover.wait()
        self._lanes.give_back(self._mover)
        self._memory.leave(self._address)


def seeded(sums: Sums, seeds: Sequence[int]) -> list[bytes]:
    """Mixes each block's seed into its sum, so that a block that is whole but another one does not agree
    either."""
    data = (sums ^ np.array(seeds, np.uint64)[:, None]).astype("<u8").tobytes()
    return [data[at : at + SUM_BYTES] for at in range(0, len(data), SUM_BYTES)]


def _shape(block_bytes: int) -> Shape:
    blocks = max(1, SLAB_BYTES // block_bytes)
    return Shape(SLABS, -(-blocks * block_bytes // _ALIGNED) * _ALIGNED)
