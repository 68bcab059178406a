"""A bound on the bytes a second that leave, over all connections."""

import time
from threading import Lock


class Throttle:
    """``wait`` is called by the sending threads, which sleep in the order in which they came."""

    def __init__(self, bytes_per_s: float) -> None:
        self._bytes_per_s = bytes_per_s
        self._free_at = 0.0
        self._lock = Lock()

    def wait(self, count: int) -> None:
        """Until ``count`` more bytes may leave."""
        now = time.monotonic()
        with self._lock:
            starts = max(self._free_at, now)
            self._free_at = starts + count / self._bytes_per_s
            ends = self._free_at
        time.sleep(ends - now)
