"""An answer on its way through Envoy: passed on, and read for what it cost."""

from warmfleet_proto.errors import WorkerLost

from warmfleet_router.servers import sse

MAX_BODY_BYTES = 4 << 20  # of one that is not streamed; of a larger one nothing is learned
MAX_HELD_BYTES = 256 << 20  # of all such at once; of what is beyond nothing is learned either


class Held:
    """How much is held of answers that have not ended."""

    def __init__(self) -> None:
        self.size = 0


class Answer:
    """``hide``: the client did not ask for the usage that its stream ends with. ``held``: with others'."""

    def __init__(self, hide: bool, held: Held) -> None:
        self._hide = hide
        self._held = held
        self._stream: sse.Stream | None = None
        self._all = False  # nothing is held back any more
        self._body: bytearray | None = None

    def begins(self, content_type: str, encoding: str) -> None:
        """The headers of a good answer have come. A compressed one is not looked into."""
        if encoding:
            return
        if is_stream(content_type):
            self._stream = sse.Stream(self._hide)
        elif _kind(content_type) == "application/json":
            self._body = bytearray()

    @property
    def streaming(self) -> bool:
        return self._stream is not None

    def settle(self) -> bool:
        """Holds nothing back any more; whether nothing is held. What is, goes on with the next part."""
        self._all = True
        return not (self._hide and self._stream is not None and self._stream.holds)

    def feed(self, part: bytes, last: bool) -> bytes:
        """What of it the client gets now."""
        if self._stream is not None and not self._stream.done:
            return self._watched(self._stream, part, last)
        if self._body is not None:
            self._body += part
            self._held.size += len(part)
            if len(self._body) > MAX_BODY_BYTES or self._held.size > MAX_HELD_BYTES:
                self._taken()
        return part

    def usage(self) -> sse.Usage | None:
        """Once all of it has been fed, or will not be: what is held of it is let go."""
        if self._stream is not None:
            return self._stream.usage
        body = self._taken()
        try:
            return sse.read_body(bytes(body)) if body else None
        except WorkerLost:  # no answer of a model's
            return None

    def _taken(self) -> bytearray | None:
        body, self._body = self._body, None
        self._held.size -= len(body or b"")
        return body

    def _watched(self, stream: sse.Stream, part: bytes, last: bool) -> bytes:
        if len(part) > stream.room or self._all:
            stream.done = True  # an event without end, or its reader leaves: nothing is learned of it
            held = stream.rest()  # which who asked for usage has had already
            return held + part if self._hide else part
        whole = stream.feed(part)
        if not self._hide:
            return part
        return whole + stream.rest() if last or stream.done else whole


def is_stream(content_type: str) -> bool:
    """Whether an answer comes as events."""
    return _kind(content_type) == "text/event-stream"


def _kind(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()
