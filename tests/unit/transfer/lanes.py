"""Both kinds of lanes without a GPU: pools in memory, and memory of the host in the place of a device's."""

import ctypes
import mmap
import os
import socket
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from warmfleet_proto.transfer_pb2 import Offer
from warmfleet_worker.engine.access import HostAccess, host_memory
from warmfleet_worker.transfer.device_lanes import DeviceLanes
from warmfleet_worker.transfer.haul import PoolHaul
from warmfleet_worker.transfer.lane import Lane, Lanes, Shape, Window
from warmfleet_worker.transfer.lane_target import LaneTarget
from warmfleet_worker.transfer.shared_memory import SharedMemory
from warmfleet_worker.transfer.tcp_stream import TcpStream

from tests.unit.transfer.hauls import LEASE, SECRET, Blocks, to_their_end

SLABS = 3


class Pool:
    """As much of an Engine as moving its blocks takes."""

    def __init__(self, words: Tensor) -> None:
        """``words`` int32 [blocks, words]."""
        self.words = words
        self.block_bytes = words[0].nbytes
        self._access = HostAccess(words.view(torch.uint8))

    @classmethod
    def random(cls, blocks: int, words: int, seed: int = 0) -> "Pool":
        generator = torch.Generator().manual_seed(seed)
        return cls(
            torch.randint(-(2**31), 2**31 - 1, (blocks, words), dtype=torch.int32, generator=generator)
        )

    @classmethod
    def empty(cls, like: "Pool") -> "Pool":
        return cls(torch.zeros_like(like.words))

    def host_memory(self, size: int) -> memoryview:
        return host_memory(size, pinned=False)

    def read_blocks(self, blocks: Sequence[int], copy: memoryview) -> None:
        self._access.read(blocks, copy)

    def write_blocks(self, blocks: Sequence[int], copy: memoryview) -> None:
        self._access.write(blocks, copy)


class HostMemory:
    """See ``device_lanes.DeviceMemory``: what processes of a host can share without a device."""

    def __init__(self) -> None:
        self._files: dict[int, int] = {}
        self._maps: dict[int, mmap.mmap] = {}

    @property
    def in_use(self) -> int:
        """Allocated or opened."""
        return len(self._maps)

    def allocate(self, size: int) -> int:
        file = os.memfd_create("test")
        os.ftruncate(file, size)
        address = self._map(file, size)
        self._files[address] = file
        return address

    def free(self, address: int) -> None:
        os.close(self._files.pop(address))
        del self._maps[address]

    def show(self, stream: TcpStream, address: int) -> None:
        stream.send_file(self._files[address])

    def open(self, stream: TcpStream, size: int) -> int:
        file = stream.receive_file()
        address = self._map(file, size)
        os.close(file)
        return address

    def leave(self, address: int) -> None:
        del self._maps[address]

    def close(self) -> None:
        """Nothing is kept for later."""

    def _map(self, file: int, size: int) -> int:
        mapped = mmap.mmap(file, size)
        address = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
        self._maps[address] = mapped
        return address


def shared(pool: Pool, shape: Shape) -> Lanes:
    engine: Any = pool
    return SharedMemory(engine, 2, shape)


def device(pool: Pool, shape: Shape) -> Lanes:
    return DeviceLanes(pool.words, HostMemory(), shape)


def nixl(pool: Pool, shape: Shape) -> Lanes:
    from warmfleet_worker.transfer.nixl_lanes import NixlLanes

    engine: Any = pool
    return NixlLanes(engine, 2, shape)


KINDS: dict[str, Callable[[Pool, Shape], Lanes]] = {"shm": shared, "device": device}
if find_spec("nixl"):
    KINDS["nixl"] = nixl


def shape_of(pool: Pool, blocks: int) -> Shape:
    """Slabs of so many blocks."""
    return Shape(SLABS, -(-blocks * pool.block_bytes // 256) * 256)


def opened(source: Lanes, target: Lanes) -> tuple[Lane, Window]:
    """Both ends of a lane."""
    lane = source.make()
    ours, theirs = (TcpStream(each) for each in socket.socketpair(socket.AF_UNIX))
    try:
        lane.show(ours)
        return lane, target.open(theirs, lane.shape)
    finally:
        ours.close()
        theirs.close()


def leased(pool: Pool) -> Blocks:
    """All blocks of a pool, seeded with their numbers."""
    return Blocks([memoryview(block.numpy()).cast("B") for block in pool.words])


def haul_of(pool: Pool, targets: Sequence[int]) -> PoolHaul:
    engine: Any = pool
    return PoolHaul(engine, None, targets, range(len(targets)), lambda: None)


def pull(
    target: LaneTarget, offer: Offer, haul: PoolHaul, streams: int = 1, secret: bytes = SECRET
) -> list[Exception]:
    """All streams to their end; what they raised."""
    return to_their_end(lambda: target.pull("", offer, LEASE, secret, haul), streams)
