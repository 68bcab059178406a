"""A bound on the bytes a second that leave, over all connections."""

import time
from collections.abc import Iterator
from threading import Lock

_SLICE_S = 0.05  # of the bound: what leaves at once
_SLICE_BYTES = 128, 4 << 20  # and its own bounds


class Throttle:
    """Used by the sending threads, which sleep in the order in which they came."""

    def __init__(self, bytes_per_s: float) -> None:
        self._bytes_per_s = bytes_per_s
        least, most = _SLICE_BYTES
        self._slice = int(min(max(bytes_per_s * _SLICE_S, least), most))
        self._free_at = 0.0
        self._lock = Lock()

    def slices(self, part: memoryview) -> Iterator[memoryview]:
        """The part in pieces, each when it may leave."""
        for start in range(0, len(part), self._slice):
            piece = part[start : start + self._slice]
            self._wait(len(piece))
            yield piece

    def _wait(self, count: int) -> None:
        now = time.monotonic()
        with self._lock:
            self._free_at = max(self._free_at, now) + count / self._bytes_per_s
            ends = self._free_at
        time.sleep(ends - now)
