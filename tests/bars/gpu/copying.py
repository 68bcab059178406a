"""Lanes whose target copies a slab to its own device first, to be measured beside those that it reads."""

import ctypes
from collections.abc import Sequence

import torch
from warmfleet_worker.engine.mover import Mover
from warmfleet_worker.transfer.device_lanes import DeviceLanes, DeviceWindow, seeded
from warmfleet_worker.transfer.lane import Landing, Shape
from warmfleet_worker.transfer.tcp_stream import TcpStream


class CopyingLanes(DeviceLanes):
    def open(self, stream: TcpStream, shape: Shape) -> "CopyingWindow":
        address = self.memory.open(stream, shape.slabs * shape.slab_bytes)
        return CopyingWindow(self, self.memory, address, shape)


class CopyingWindow(DeviceWindow):
    """A stream for each slab: one is copied while another is scattered."""

    def __init__(self, lanes: DeviceLanes, memory: object, address: int, shape: Shape) -> None:
        super().__init__(lanes, memory, address, shape)  # type: ignore[arg-type]
        device = self._mover.pool.device
        self._own = torch.empty((shape.slabs, shape.slab_bytes), dtype=torch.uint8, device=device)
        self._movers = [Mover(lanes.pool, lanes.constants) for _ in range(shape.slabs)]

    def start(self, slab: int, targets: Sequence[int], seeds: Sequence[int]) -> Landing:
        mover, own = self._movers[slab], self._own[slab]
        count = len(targets) * mover.pool[0].nbytes
        _copy(own.data_ptr(), self._address + slab * self._shape.slab_bytes, count, mover)
        moving = mover.scatter(own.data_ptr(), targets)
        return lambda: seeded(moving(), seeds)


def _copy(target: int, source: int, count: int, mover: Mover) -> None:
    if mover.stream is None:
        ctypes.memmove(target, source, count)
        return
    driver = ctypes.CDLL("libcuda.so.1")
    places = (ctypes.c_uint64(target), ctypes.c_uint64(source), ctypes.c_size_t(count))
    with mover.current():
        code = driver.cuMemcpyDtoDAsync_v2(*places, ctypes.c_void_p(mover.stream.cuda_stream))
    assert not code, f"cuMemcpyDtoDAsync: {code}"
