"""One HTTP/1.1 connection to a server that is not ours: one request at a time, its answer as it comes.

Most of what relaying a token costs in asyncio is a future, a task's turn and a timer for each part of
an answer. Here parts go to a function from within the callback that read them: see ``Reply.pour``.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import cast

import httptools
from warmfleet_proto.errors import WorkerLost

MAX_HEAD_BYTES = 64 << 10  # and of whatever else is no body: trailers, extensions of chunks
READ_AHEAD_BYTES = 128 << 10  # of an answer, before whoever wants it takes it: then reading stops
LAST_WORDS_S = 0.5  # for the end of an answer that has said that it is over


class Reply:
    """An answer under way. Whatever is awaited here raises WorkerLost when the connection breaks."""

    def __init__(self, connection: "Connection") -> None:
        self.status = 0
        self.content_type = ""
        self.retry_after = ""
        self.began = False  # some of it has come
        self.complete = False
        self.keeps_alive = False
        self._connection = connection
        self._parser = httptools.HttpResponseParser(self)
        self._without_body = 0  # bytes since the last of a body, or since the start
        self._has_head = False
        self._ends_itself = False  # else the end of the connection is its end
        self._parts: deque[bytes] = deque()
        self._size = 0
        self._sink: Callable[[bytes], bool] | None = None
        self._error: BaseException | None = None
        self._waiter: asyncio.Future[None] | None = None

    # ---- for whoever has asked

    @property
    def exhausted(self) -> bool:
        """It is complete, and all of it has been taken."""
        return self.complete and not self._parts

    async def head(self) -> None:
        """``status`` and the headers are known."""
        while not self._has_head:
            await self._more()

    async def part(self) -> bytes:
        """What has come meanwhile; b"" at the end."""
        while not self._parts:
            if self.complete:
                return b""
            await self._more()
        taken = b"".join(self._parts)
        self._parts.clear()
        self._size = 0
        self._connection.resume()
        return taken

    async def whole(self, limit: int) -> bytes:
        """Raises WorkerLost for more than ``limit`` bytes, too."""
        parts, size = [], 0
        while part := await self.part():
            parts.append(part)
            size += len(part)
            if size > limit:
                raise WorkerLost(f"the server's answer exceeds {limit} bytes")
        return b"".join(parts)

    async def pour(self, sink: Callable[[bytes], bool]) -> None:
        """Gives every part to ``sink`` at once, until it answers False or the answer is complete.

        What ``sink`` raises is raised. The rest waits until it is asked for.
        """
        while self._parts:
            part = self._parts.popleft()
            self._size -= len(part)
            if not sink(part):
                return
        self._sink = sink
        self._connection.resume()
        try:
            while self._sink is not None and not self.complete:
                await self._more()
        finally:
            self._sink = None

    def release(self, over: bool) -> None:
        """It is not wanted any more. ``over``: what is left of it, if anything, is about to come."""
        self._connection.released(over)

    # ---- for the connection

    def feed(self, data: bytes) -> None:
        self.began = True
        if self.complete:
            self._connection.close()  # nobody has asked for more
            return
        self._without_body += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self.fail(WorkerLost(f"the server's answer is no HTTP: {str(error)[:100]}"))
        else:
            if self._without_body > MAX_HEAD_BYTES:
                self.fail(WorkerLost(f"the server's headers exceed {MAX_HEAD_BYTES} bytes"))

    def closed(self, in_order: bool) -> None:
        """The connection has ended."""
        if in_order and self._has_head and not self._ends_itself and self._error is None:
            self.complete = True
            self._wake()
        self.fail(WorkerLost("the server closed the connection"))

    def fail(self, error: BaseException) -> None:
        """Once; nothing more of it counts."""
        if not self.complete and self._error is None:
            self._error = error
            self._connection.close()
            self._wake()

    # ---- for the parser, which would go on with another answer behind this one

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._has_head:
            return
        match name.lower():
            case b"content-type":
                self.content_type = value.partition(b";")[0].strip().lower().decode("latin-1")
            case b"retry-after":
                self.retry_after = value.decode("latin-1")
            case b"content-length" | b"transfer-encoding":
                self._ends_itself = True

    def on_headers_complete(self) -> None:
        if self._has_head:
            return
        self.status = self._parser.get_status_code()
        if self.status >= 200:
            self._has_head = True
            self.keeps_alive = self._parser.should_keep_alive() and self._ends_itself
            self._wake()

    def on_body(self, part: bytes) -> None:
        self._without_body = 0
        if self.complete or self._error is not None:
            return
        if self._sink is None:
            self._hold(part)
            return
        try:
            goes_on = self._sink(part)
        except Exception as error:
            self._sink = None
            self.fail(error)
            return
        if not goes_on:
            self._sink = None
            self._connection.pause()
            self._wake()

    def on_message_complete(self) -> None:
        if self._has_head and not self.complete and self._error is None:  # not of a mere 100 Continue
            self.complete = True
            self._connection.completed(self.keeps_alive)
            self._wake()

    def _hold(self, part: bytes) -> None:
        self._parts.append(part)
        self._size += len(part)
        if self._size > READ_AHEAD_BYTES:
            self._connection.pause()
        self._wake()

    # ---- waiting

    async def _more(self) -> None:
        """Waits until anything has changed."""
        if self._error is not None:
            raise self._error
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter
        if self._error is not None:
            raise self._error

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


class Connection(asyncio.Protocol):
    """``over`` is called whenever it is free for the next request, and once it is gone for good."""

    def __init__(self, over: Callable[["Connection"], None]) -> None:
        self.idle_since = 0.0
        self.heard_at = 0.0  # the latest of its answer, or when that was asked for
        self._loop = asyncio.get_running_loop()
        self._over = over
        self._transport: asyncio.Transport | None = None
        self._reply: Reply | None = None
        self._released = False
        self._last_words: asyncio.TimerHandle | None = None

    @property
    def open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    @property
    def free(self) -> bool:
        return self.open and self._reply is None

    @property
    def waits(self) -> bool:
        """Whether it waits for more of an answer."""
        return self._reply is not None and not self._reply.complete

    def ask(self, request: bytes) -> Reply:
        """Sends a whole request; the connection is free."""
        assert self._transport is not None
        self._released = False
        self.heard_at = self._loop.time()
        self._reply = Reply(self)
        self._transport.write(request)
        return self._reply

    # ---- for its reply

    def pause(self) -> None:
        if self._transport is not None:
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._transport is not None:
            self._transport.resume_reading()

    def completed(self, keeps_alive: bool) -> None:
        if not keeps_alive:
            self.close()
        elif self._released:
            self._let_go()

    def released(self, over: bool) -> None:
        """An answer that is not at its end is cut off: that cancels the request there."""
        if self._reply is None:
            return
        self._released = True
        if self._reply.complete:
            self._let_go()
        elif over and self.open:
            self.resume()
            self._last_words = asyncio.get_running_loop().call_later(LAST_WORDS_S, self.close)
        else:
            self.close()

    def _let_go(self) -> None:
        if not self.open:
            return
        if self._last_words is not None:
            self._last_words.cancel()
        self._reply = None
        self.resume()
        self._over(self)

    def give_up(self) -> None:
        """Who waits for an answer hears that the server is gone."""
        if self._reply is not None:
            self._reply.fail(WorkerLost("the server answers nobody any more"))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()  # whatever of the request is not sent yet is not wanted

    # ---- asyncio's

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by its class

    def data_received(self, data: bytes) -> None:
        if self._reply is None:
            self.close()  # nobody has asked
        else:
            self.heard_at = self._loop.time()
            self._reply.feed(data)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        if self._last_words is not None:
            self._last_words.cancel()
        if self._reply is not None:
            self._reply.closed(in_order=error is None)
        self._over(self)
