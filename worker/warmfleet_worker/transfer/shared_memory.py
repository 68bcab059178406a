"""Lanes of shared memory: workers of one host whose blocks lie in memory of the host, or pass through it.

The memory has no name: its descriptor travels over the connection, and it goes with the last process that
maps it, however that ends.
"""

import fcntl
import mmap
import os
from collections.abc import Sequence

from warmfleet_proto.errors import WorkerLost

from warmfleet_worker.engine.base import Engine
from warmfleet_worker.transfer.frames import block_sums, piece_blocks
from warmfleet_worker.transfer.lane import Landing, Shape, fetched
from warmfleet_worker.transfer.tcp_stream import TcpStream
from warmfleet_worker.transfer.transport import Filling, Lot

_SLABS = 2
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


class SharedMemory:
    """See ``lane.Lanes``."""

    name = "shm"
    leaves_the_host = False

    def __init__(self, engine: Engine, streams: int, shape: Shape | None = None) -> None:
        self.streams = streams
        self._engine = engine
        self._shape = shape or Shape(_SLABS, piece_blocks(engine.block_bytes) * engine.block_bytes)

    def make(self) -> "SharedLane":
        return SharedLane(self._engine, self._shape)

    def open(self, stream: TcpStream, shape: Shape) -> "SharedWindow":
        file = stream.receive_file()
        try:
            if fcntl.fcntl(file, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
                raise WorkerLost("the source's memory could shrink while it is read")
            return SharedWindow(self._engine, _map(file, shape), shape)
        except (OSError, ValueError) as error:
            raise WorkerLost(f"the source's memory cannot be mapped: {error}") from None
        finally:
            os.close(file)

    def close(self) -> None:
        """Every window unmaps what it looked into."""


class SharedLane:
    """See ``lane.Lane``."""

    def __init__(self, engine: Engine, shape: Shape) -> None:
        self.shape = shape
        self._engine = engine
        self._file = os.memfd_create("warmfleet-lane", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.posix_fallocate(self._file, 0, shape.slabs * shape.slab_bytes)
            fcntl.fcntl(self._file, fcntl.F_ADD_SEALS, _SEALS)
            self._memory = _map(self._file, shape)
        except OSError:
            os.close(self._file)
            raise

    def show(self, stream: TcpStream) -> None:
        stream.send_file(self._file)

    def fill(self, slab: int, lot: Lot, first: int, count: int) -> Filling:
        return fetched(lot, first, count, _slab(self._memory, self.shape, slab))

    def close(self) -> None:
        os.close(self._file)
        self._memory.release()


class SharedWindow:
    """See ``lane.Window``."""

    def __init__(self, engine: Engine, memory: memoryview, shape: Shape) -> None:
        self._engine = engine
        self._memory = memory
        self._shape = shape

    def start(self, slab: int, targets: Sequence[int], seeds: Sequence[int]) -> Landing:
        def land() -> list[bytes]:
            copy = _slab(self._memory, self._shape, slab)
            self._engine.write_blocks(targets, copy)
            # Afterwards: what a source that gave this pull up has filled anew meanwhile does not agree.
            return block_sums(copy, self._engine.block_bytes, seeds)

        return land

    def close(self) -> None:
        self._memory.release()


def _map(file: int, shape: Shape) -> memoryview:
    return memoryview(mmap.mmap(file, shape.slabs * shape.slab_bytes))


def _slab(memory: memoryview, shape: Shape, slab: int) -> memoryview:
    return memory[slab * shape.slab_bytes : (slab + 1) * shape.slab_bytes]
