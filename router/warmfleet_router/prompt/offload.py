"""Work that would hold up the event loop, in a few threads and within a bound."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from warmfleet_proto.errors import Rejected

T = TypeVar("T")


class Offload:
    """``max_pending``: the sum of the sizes (any unit) of what runs and waits."""

    def __init__(self, threads: int, max_pending: int) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="prompt")
        self._max_pending = max_pending
        self._pending = 0
        self._lock = threading.Lock()

    async def run(self, size: int, function: Callable[..., T], *args: Any) -> T:
        """``function(*args)`` in a thread. Raises Rejected over the bound."""
        with self._lock:
            # One piece of work may always run, whatever its size.
            if self._pending and self._pending + size > self._max_pending:
                raise Rejected("too many prompts wait to be read and tokenised")
            self._pending += size
        future: Future[T] = self._executor.submit(function, *args)
        # A cancelled caller's work counts until its thread is done with it.
        future.add_done_callback(lambda _: self._release(size))
        try:
            return await asyncio.wrap_future(future)
        finally:
            del future  # an exception in it holds this frame, and with it ``args``

    def close(self) -> None:
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _release(self, size: int) -> None:
        with self._lock:
            self._pending -= size
