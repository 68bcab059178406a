"""The server's side of one HTTP/2 connection (RFC 9113), as far as gRPC needs it: frames in, frames out.

Pure. gRPC's own server would take a third of a pick's CPU, with threads that wake each other for every
message; here a message is answered within the callback that read it.
"""

import struct
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Protocol

from warmfleet_router.picker.hpack import Decoder, Header, Malformed

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FRAME_BYTES = 16_384  # that either end sends at most: what both must take
WINDOW_BYTES = 1 << 20  # that a peer may send on a stream ahead of what was read, or leave unread itself
ALL_BYTES = 16 << 20  # that it may send on all of them
MAX_STREAMS = 1 << 16  # one a request that Envoy has under way
MAX_BLOCK_BYTES = 16 << 10  # of headers, in however many frames
MAX_WINDOW = (1 << 31) - 1

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS = range(5)
PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(5, 10)
END_STREAM = ACK = 0x1
END_HEADERS, PADDED, PRIORITISED = 0x4, 0x8, 0x20
NO_ERROR, PROTOCOL_ERROR, FLOW_CONTROL_ERROR, FRAME_SIZE_ERROR, REFUSED_STREAM = 0, 1, 3, 6, 7
COMPRESSION_ERROR, ENHANCE_YOUR_CALM = 9, 11
_HEADER_TABLE_SIZE, _MAX_CONCURRENT_STREAMS, _INITIAL_WINDOW_SIZE, _MAX_HEADER_LIST_SIZE = 1, 3, 4, 6

_FRAME = struct.Struct("!IBI")  # 24 bits of size and 8 of kind; flags; stream
_SETTING = struct.Struct("!HI")
_NUMBER = struct.Struct("!I")


class Broken(Exception):
    """The peer does not speak HTTP/2: ``code`` says why, and the connection is of no more use."""

    def __init__(self, code: int, why: str) -> None:
        super().__init__(why)
        self.code = code


class Call(Protocol):
    """What hears of a stream: its data, and its end."""

    def data(self, part: bytes) -> None: ...

    def done(self) -> None:
        """The peer has said all."""

    def gone(self) -> None:
        """It is over, and nothing more can be said. Not called after ``Stream.end``."""

    def settle(self) -> None:
        """It is to end now, if nobody waits for what it has to say."""


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return _FRAME.pack(len(payload) << 8 | kind, flags, stream) + payload


class Stream:
    """What is said on one stream. Data waits here for the peer's windows; header blocks are HPACK already."""

    call: Call

    def __init__(self, connection: "Connection", number: int) -> None:
        self.number = number
        self.granted = 0  # by the peer beyond the first window, less what was sent
        self.unread = 0  # bytes that it was not told to be read
        self.heard_all = False
        self.over = False
        self.waiting = bytearray()
        self._last_words: bytes | None = None
        self._connection = connection

    def together(self) -> "Connection":
        """What is said within a ``with`` of it goes out in one write: each wakes the peer."""
        return self._connection

    def later(self, rest: Callable[[], None]) -> None:
        """Puts off work until all answers of this turn are written."""
        self._connection.later(rest)

    def head(self, block: bytes) -> None:
        if not self.over:
            self._connection.send(frame(HEADERS, END_HEADERS, self.number, block))

    def say(self, data: bytes) -> None:
        if not self.over:
            self.waiting += data
            self.pump()

    def end(self, block: bytes) -> None:
        """Ends the stream with these trailers, once all that was said has gone."""
        if not self.over:
            self._last_words = block
            self.pump()

    def pump(self) -> None:
        """Sends what the windows let through."""
        connection, waiting = self._connection, self.waiting
        while waiting and (size := min(len(waiting), FRAME_BYTES, self.window, connection.window)) > 0:
            self.granted -= size
            connection.window -= size
            connection.send(frame(DATA, 0, self.number, bytes(waiting[:size])))
            del waiting[:size]
        if waiting:
            if self.window > 0:
                connection.stuck[self.number] = self
        elif self._last_words is not None and not self.over:
            self.over = True
            connection.send(frame(HEADERS, END_HEADERS | END_STREAM, self.number, self._last_words))
            connection.forget(self)
        self.hear_on()

    @property
    def window(self) -> int:
        """Bytes that the peer lets us send on this stream."""
        return self._connection.first_window + self.granted

    def hear_on(self) -> None:
        """Lets the peer say more, unless it does not read what it is told."""
        if self.unread >= WINDOW_BYTES // 2 and len(self.waiting) < WINDOW_BYTES and not self.over:
            self._connection.read(self.number, self.unread)
            self.unread = 0


class Connection:
    """``send`` takes bytes for the peer; ``accept`` makes the call of a new stream from its headers."""

    def __init__(self, send: Callable[[bytes], None], accept: Callable[[Stream, list[Header]], Call]) -> None:
        self.window = 65_535
        self.streams: dict[int, Stream] = {}
        self.stuck: OrderedDict[int, Stream] = OrderedDict()  # those of them that wait for ``window``
        self.first_window = 65_535  # of each stream
        self._send = send
        self._gathered: list[bytes] = []  # what was said within ``with``, however deep
        self._later: deque[Callable[[], None]] = deque()
        self._depth = 0
        self._accept = accept
        self._hpack = Decoder()
        self._rest = b""
        self._greeted = False
        self._widened = False  # the streams' windows, since they were last looked at
        self._unread = 0
        self._latest = 0
        self._leaving = False
        self._block: bytes | None = None  # of headers that go on in the next frame
        self._opening = (0, False)  # whose they are, and whether nothing comes after them
        # PRIORITY, GOAWAY (the peer closes the connection by itself) and unknown kinds ask for nothing.
        self._takers = {
            DATA: self._data,
            HEADERS: self._headers,
            RST_STREAM: self._reset,
            SETTINGS: self._settings,
            PING: self._ping,
            WINDOW_UPDATE: self._grown,
            CONTINUATION: self._continued,
        }
        settings = (
            (_HEADER_TABLE_SIZE, 0),
            (_MAX_CONCURRENT_STREAMS, MAX_STREAMS),
            (_INITIAL_WINDOW_SIZE, WINDOW_BYTES),
            (_MAX_HEADER_LIST_SIZE, MAX_BLOCK_BYTES),
        )
        with self:
            self.send(frame(SETTINGS, 0, 0, b"".join(_SETTING.pack(*setting) for setting in settings)))
            self.read(0, ALL_BYTES - self.window)

    def __enter__(self) -> None:
        self._depth += 1

    def __exit__(self, *_: object) -> None:
        try:
            if self._depth == 1:
                self._flush()
                while self._later:
                    self._later.popleft()()
                self._flush()
        finally:
            self._depth -= 1

    def later(self, rest: Callable[[], None]) -> None:
        """Within ``with``: done once all that was said has been sent."""
        self._later.append(rest)

    def _flush(self) -> None:
        if self._gathered:
            gathered, self._gathered = self._gathered, []
            self._send(b"".join(gathered))

    def send(self, frames: bytes) -> None:
        if self._depth:
            self._gathered.append(frames)
        else:
            self._send(frames)

    def receive(self, data: bytes) -> None:
        """What came together is answered together. Raises Broken."""
        with self:
            self._receive(data)

    def _receive(self, data: bytes) -> None:
        if self._rest:
            data = self._rest + data
        at = 0
        if not self._greeted:
            if not data.startswith(PREFACE[: len(data)]):
                raise Broken(PROTOCOL_ERROR, "no HTTP/2")
            self._greeted = len(data) >= len(PREFACE)
            at = len(PREFACE) if self._greeted else 0
        while self._greeted and len(data) - at >= _FRAME.size:
            first, flags, number = _FRAME.unpack_from(data, at)
            if first >> 8 > FRAME_BYTES:
                raise Broken(FRAME_SIZE_ERROR, "a frame larger than allowed")
            end = at + _FRAME.size + (first >> 8)
            if end > len(data):
                break
            payload = data[at + _FRAME.size : end]
            at = end
            self._take(first & 0xFF, flags, number & MAX_WINDOW, payload)
        self._rest = data[at:]
        if self._widened:
            self._pump_all()

    def leave(self) -> None:
        """Takes no more streams; those there are go on."""
        self._leaving = True
        self.send(frame(GOAWAY, 0, 0, _NUMBER.pack(self._latest) + _NUMBER.pack(NO_ERROR)))

    def abandon(self, code: int) -> None:
        """Tells the peer why, and every call that it is gone."""
        self.send(frame(GOAWAY, 0, 0, _NUMBER.pack(self._latest) + _NUMBER.pack(code)))
        self.closed()

    def closed(self) -> None:
        for stream in list(self.streams.values()):
            self._drop(stream)

    def forget(self, stream: Stream) -> None:
        """It is over by our own word."""
        self.streams.pop(stream.number, None)
        del stream.call  # each knows the other: nothing is left for the collector
        if not stream.heard_all:
            self.send(frame(RST_STREAM, 0, stream.number, _NUMBER.pack(NO_ERROR)))

    def read(self, number: int, size: int) -> None:
        """So much more may come, on a stream or (0) on all of them."""
        self.send(frame(WINDOW_UPDATE, 0, number, _NUMBER.pack(size)))

    # ---- frames

    def _take(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if self._block is not None and (kind != CONTINUATION or number != self._opening[0]):
            raise Broken(PROTOCOL_ERROR, "headers that break off")
        if take := self._takers.get(kind):
            take(number, flags, payload)
        elif kind == PUSH_PROMISE:
            raise Broken(PROTOCOL_ERROR, "a push from a client")

    def _data(self, number: int, flags: int, payload: bytes) -> None:
        size = len(payload)
        self._unread += size
        if self._unread >= ALL_BYTES // 2:
            self.read(0, self._unread)
            self._unread = 0
        stream = self.streams.get(number)
        if stream is None or stream.heard_all:
            if not number or number > self._latest:
                raise Broken(PROTOCOL_ERROR, "data of no stream")
            return  # of one that ended a moment ago
        stream.unread += size
        if stream.unread > WINDOW_BYTES:
            raise Broken(FLOW_CONTROL_ERROR, "more data than allowed")
        if part := _unpadded(payload) if flags & PADDED else payload:
            stream.call.data(part)
        if flags & END_STREAM:
            self._heard_all(stream)
        else:
            stream.hear_on()

    def _headers(self, number: int, flags: int, payload: bytes) -> None:
        if not number % 2:
            raise Broken(PROTOCOL_ERROR, "headers of no stream")
        if flags & PADDED:
            payload = _unpadded(payload)
        self._opening = number, bool(flags & END_STREAM)
        self._block = b""
        self._continued(number, flags, payload[5:] if flags & PRIORITISED else payload)

    def _continued(self, number: int, flags: int, payload: bytes) -> None:
        if self._block is None:
            raise Broken(PROTOCOL_ERROR, "headers that go on without a beginning")
        self._block += payload
        if len(self._block) > MAX_BLOCK_BYTES or not (payload or flags & END_HEADERS):
            raise Broken(ENHANCE_YOUR_CALM, "headers without an end")
        if flags & END_HEADERS:
            block, self._block = self._block, None
            try:
                headers = self._hpack.headers(block)
            except Malformed as error:
                raise Broken(COMPRESSION_ERROR, str(error)) from None
            self._opened(*self._opening, headers)

    def _opened(self, number: int, last: bool, headers: list[Header]) -> None:
        stream = self.streams.get(number)
        if stream is None and number > self._latest:
            self._latest = number
            if self._leaving or len(self.streams) >= MAX_STREAMS:
                self.send(frame(RST_STREAM, 0, number, _NUMBER.pack(REFUSED_STREAM)))
                return
            stream = self.streams[number] = Stream(self, number)
            stream.call = self._accept(stream, headers)
        elif stream is not None and not last:
            raise Broken(PROTOCOL_ERROR, "a stream that begins twice")
        if stream is not None and last:
            self._heard_all(stream)

    def _heard_all(self, stream: Stream) -> None:
        if not stream.heard_all:
            stream.heard_all = True
            if not stream.over:
                stream.call.done()

    def _reset(self, number: int, flags: int, payload: bytes) -> None:
        if len(payload) != _NUMBER.size or not number or number > self._latest:
            raise Broken(PROTOCOL_ERROR, "the end of no stream")
        if stream := self.streams.get(number):
            self._drop(stream)

    def _drop(self, stream: Stream) -> None:
        del self.streams[stream.number]
        self.stuck.pop(stream.number, None)
        said_all, stream.over = stream.over or stream._last_words is not None, True
        stream.waiting.clear()
        if not said_all:
            stream.call.gone()
        del stream.call

    def _settings(self, number: int, flags: int, payload: bytes) -> None:
        if number or len(payload) % _SETTING.size or (flags & ACK and payload):
            raise Broken(FRAME_SIZE_ERROR, "malformed settings")
        if flags & ACK:
            return
        for name, value in _SETTING.iter_unpack(payload):
            if name == _INITIAL_WINDOW_SIZE:
                _check(value)
                self._widened |= value > self.first_window
                self.first_window = value
        self.send(frame(SETTINGS, ACK, 0))

    def _ping(self, number: int, flags: int, payload: bytes) -> None:
        if number or len(payload) != 8:
            raise Broken(FRAME_SIZE_ERROR, "a malformed ping")
        if not flags & ACK:
            self.send(frame(PING, ACK, 0, payload))

    def _grown(self, number: int, flags: int, payload: bytes) -> None:
        more = _NUMBER.unpack(payload)[0] & MAX_WINDOW if len(payload) == _NUMBER.size else 0
        if not more or number > self._latest:
            raise Broken(PROTOCOL_ERROR, "a window that does not grow")
        if not number:
            self.window += more
            _check(self.window)
            while self.stuck and self.window > 0:
                self.stuck.popitem(last=False)[1].pump()
        elif stream := self.streams.get(number):  # else it ended a moment ago
            stream.granted += more
            _check(stream.window)
            stream.pump()

    def _pump_all(self) -> None:
        """Once for what came together: the peer may change its mind with every frame."""
        self._widened = False
        for stream in list(self.streams.values()):
            if stream.waiting:
                stream.pump()


def _check(window: int) -> None:
    if window > MAX_WINDOW:
        raise Broken(FLOW_CONTROL_ERROR, "a window larger than allowed")


def _unpadded(payload: bytes) -> bytes:
    padding = payload[0] if payload else 0
    if padding >= len(payload):
        raise Broken(PROTOCOL_ERROR, "more padding than there is")
    return payload[1 : len(payload) - padding]
