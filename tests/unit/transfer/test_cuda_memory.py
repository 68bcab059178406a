"""What is mapped of a peer's device memory, over a driver that knows of one allocation."""

import ctypes
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from warmfleet_proto.errors import WorkerLost
from warmfleet_worker.transfer.cuda_memory import CudaMemory

ADDRESS, SIZE = 1 << 30, 4096


class Driver:
    """CUDA's, without a device: what is not about mapping succeeds and does nothing."""

    def __init__(self) -> None:
        self.called: Counter[str] = Counter()
        self.range_code = 0

    def __getattr__(self, name: str) -> Callable[..., int]:
        def call(*arguments: Any) -> int:
            self.called[name] += 1
            if name == "cuIpcOpenMemHandle_v2":
                arguments[0]._obj.value = ADDRESS
            elif name == "cuMemGetAddressRange_v2":
                arguments[0]._obj.value, arguments[1]._obj.value = ADDRESS, SIZE
                return self.range_code
            return 0

        return call


class Handle:
    def receive(self, count: int) -> bytes:
        return bytes(count)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    driver = Driver()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    return driver


def test_less_memory_than_the_lane_has_is_refused(driver: Driver) -> None:
    """Also of what is mapped already; and what is refused is not used."""
    memory = CudaMemory(0)
    handle: Any = Handle()
    for _ in range(2):
        with pytest.raises(WorkerLost, match="shows 4096 bytes"):
            memory.open(handle, SIZE + 1)
    assert memory.open(handle, SIZE) == ADDRESS
    assert driver.called["cuIpcOpenMemHandle_v2"] == 1
    memory.close()
    assert "cuIpcCloseMemHandle" not in driver.called, "it is in use"
    memory.leave(ADDRESS)
    memory.close()
    assert driver.called["cuIpcCloseMemHandle"]


def test_memory_whose_size_the_driver_does_not_tell_is_taken(driver: Driver) -> None:
    memory = CudaMemory(0)
    handle: Any = Handle()
    driver.range_code = 1
    assert memory.open(handle, SIZE) == ADDRESS
