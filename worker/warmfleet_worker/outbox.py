"""What waits to be written to one Serve stream. Bounded: a stream further behind is broken off."""

import asyncio
from collections import deque
from collections.abc import Sequence

from warmfleet_proto.limits import MESSAGE_BYTES
from warmfleet_proto.worker_pb2 import Output, ServeResponse

BACKLOG_BYTES = 2 * MESSAGE_BYTES


class Outbox:
    def __init__(self) -> None:
        self._responses: deque[tuple[ServeResponse, int]] = deque()
        self._bytes = 0
        self._filled = asyncio.Event()
        self._closed = False
        self.broken = asyncio.Event()  # the stream has to end at once
        self.why = ""

    def put(self, step: int, outputs: Sequence[Output]) -> None:
        """One message, or one an output when they do not fit together."""
        response = ServeResponse(step=step, outputs=outputs)
        size = response.ByteSize()
        if size > MESSAGE_BYTES and len(outputs) > 1:
            for output in outputs:
                self.put(step, [output])
            return
        if self._bytes + size > BACKLOG_BYTES:
            self.break_off(f"the gateway is {BACKLOG_BYTES} bytes behind")
        if self._closed:
            return
        self._responses.append((response, size))
        self._bytes += size
        self._filled.set()

    async def get(self) -> ServeResponse | None:
        """The next message; None when there are no more and the box is closed."""
        while not self._responses:
            if self._closed:
                return None
            self._filled.clear()
            await self._filled.wait()
        response, size = self._responses.popleft()
        self._bytes -= size
        return response

    def close(self) -> None:
        """The stream ends when everything has been written."""
        self._closed = True
        self._filled.set()

    def break_off(self, why: str) -> None:
        """The stream ends now; what was not written can be had by reattaching."""
        self._responses.clear()
        self.close()
        self.why = self.why or why
        self.broken.set()
