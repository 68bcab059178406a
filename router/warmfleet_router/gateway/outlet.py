"""Where the events of a relayed stream go: straight into the client's connection.

Nothing is awaited for an event. A client that does not keep up is waited for between them, and given up
when it takes nothing for ``WRITE_S``.
"""

import asyncio
from collections.abc import Callable

from aiohttp import HttpVersion11, web
from aiohttp.abc import AbstractStreamWriter
from warmfleet_proto.errors import BadRequest

from warmfleet_router.gateway.record import Record

WRITE_S = 30.0


class Outlet:
    """``writer`` is what preparing the response to ``request`` gave."""

    def __init__(
        self, request: web.Request, writer: AbstractStreamWriter, record: Record, clock: Callable[[], float]
    ) -> None:
        assert request.transport is not None
        self._protocol = request.protocol
        self._transport = request.transport
        self._writer = writer
        self._chunked = request.version >= HttpVersion11
        self._record = record
        self._clock = clock

    async def begin(self, piece: bytes) -> None:
        """The first events, with the headers. Raises ConnectionError when the client has left."""
        await self._writer.write(piece)
        if piece:
            self._record.events(_events(piece), self._clock())

    def take(self, piece: bytes) -> None:
        """More of whole events. Raises ConnectionError when the client has left."""
        if self._transport.is_closing():
            raise ConnectionError("the client has left")
        if piece:
            framed = b"%x\r\n%b\r\n" % (len(piece), piece) if self._chunked else piece
            self._transport.write(framed)
            self._record.events(_events(piece), self._clock())

    @property
    def behind(self) -> bool:
        """The connection holds more than asyncio wants it to hold: 64 KiB."""
        return self._protocol.writing_paused

    async def drained(self) -> None:
        """Waits until the client is not behind any more. Raises BadRequest (408) when it has stopped
        reading."""
        if not self.behind:
            return
        try:
            async with asyncio.timeout(WRITE_S):
                await self._writer.drain()
        except TimeoutError:
            self._transport.abort()
            raise BadRequest("cancelled: the client stopped reading", status=408) from None


def _events(piece: bytes) -> int:
    """How many of a piece's events may hold tokens."""
    return piece.count(b"data:") - (b"data: [DONE]" in piece)
