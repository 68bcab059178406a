"""Where the time of a pull over lanes goes, at both ends: lanes that keep the time of every step."""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from torch import Tensor
from warmfleet_worker.transfer.device_lanes import DeviceLane, DeviceLanes, DeviceMemory, DeviceWindow
from warmfleet_worker.transfer.lane import Landing, Shape
from warmfleet_worker.transfer.tcp_stream import TcpStream
from warmfleet_worker.transfer.transport import Filling, Lot

Result = TypeVar("Result")


class Spans:
    def __init__(self) -> None:
        self._seconds: dict[str, list[float]] = defaultdict(list)

    @contextmanager
    def of(self, what: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add(what, time.perf_counter() - began)

    def add(self, what: str, seconds: float) -> None:
        self._seconds[what].append(seconds)

    def last(self, what: str) -> float:
        return self._seconds[what][-1]

    def timed(self, what: str, call: Callable[[], Result]) -> Callable[[], Result]:
        def run() -> Result:
            with self.of(what):
                return call()

        return run

    def told(self, pulls: int = 1) -> str:
        """Milliseconds of a pull by step, how often and the median; and begins anew."""
        parts = []
        for what, each in self._seconds.items():
            median, count = statistics.median(each), len(each) // pulls
            parts.append(f"{what} {1e3 * sum(each) / pulls:.2f} ms, {count} x {1e3 * median:.3f}")
        self._seconds.clear()
        return "; ".join(parts)


class TimedLanes(DeviceLanes):
    """See ``lane.Lanes``."""

    def __init__(self, pool: Tensor, memory: DeviceMemory, shape: Shape | None = None) -> None:
        super().__init__(pool, memory, shape)
        self.spans = Spans()

    def make(self) -> "TimedLane":
        return TimedLane(self, self.memory, self._shape)

    def open(self, stream: TcpStream, shape: Shape) -> "TimedWindow":
        with self.spans.of("open"):
            return TimedWindow(self, self.memory, stream, shape)


class TimedLane(DeviceLane):
    def __init__(self, lanes: TimedLanes, memory: DeviceMemory, shape: Shape) -> None:
        super().__init__(lanes, memory, shape)
        self._spans = lanes.spans

    def fill(self, slab: int, lot: Lot, first: int, count: int) -> Filling:
        with self._spans.of("begin to gather"):
            filling = super().fill(slab, lot, first, count)
        return self._spans.timed("wait for it", filling)


class TimedWindow(DeviceWindow):
    def __init__(self, lanes: TimedLanes, memory: DeviceMemory, stream: TcpStream, shape: Shape) -> None:
        super().__init__(lanes, memory, stream, shape)
        self._spans = lanes.spans

    def start(self, slab: int, targets: Sequence[int], seeds: Sequence[int]) -> Landing:
        with self._spans.of("begin to scatter"):
            landing = super().start(slab, targets, seeds)
        return self._spans.timed("wait for it", landing)
