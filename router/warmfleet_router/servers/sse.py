"""A stream of server-sent events on its way through: passed on as it is, watched for usage and its end.

Whole events are passed on, byte for byte; the usage that the client did not ask for is left out.
"""

from typing import Annotated

import msgspec
from msgspec import Meta, Raw, Struct
from warmfleet_proto.errors import WorkerLost

from warmfleet_router.gateway.messages import NULL

MAX_EVENT_BYTES = 1 << 20  # a tool call or a thousand log-probabilities are far below it

_Count = Annotated[int, Meta(ge=0)]


class PromptDetails(Struct):
    cached_tokens: _Count | None = None


class Usage(Struct):
    prompt_tokens: _Count = 0
    completion_tokens: _Count | None = None
    prompt_tokens_details: PromptDetails | None = None

    @property
    def cached_tokens(self) -> int | None:
        """None where the server does not tell."""
        return self.prompt_tokens_details.cached_tokens if self.prompt_tokens_details else None


def counted(tokens: int | None) -> int:
    """A number of tokens that a server has told, cut off to what fits into a report."""
    return min(tokens or 0, 0xFFFF_FFFF)


class _Chunk(Struct):
    choices: list[Raw] | None = None
    usage: Usage | None = None
    error: Raw = NULL


class _Body(Struct):
    usage: Usage | None = None
    error: Raw = NULL
    object: str | None = None


_chunk = msgspec.json.Decoder(_Chunk)
_body = msgspec.json.Decoder(_Body)
_DONE = b"[DONE]"


class Stream:
    """``hide``: the client did not ask for usage. ``done`` once the server has ended it in order."""

    def __init__(self, hide: bool) -> None:
        self.usage: Usage | None = None
        self.done = False
        self.failed = False  # an event of the server's own said so
        self.events = 0
        self._hide = hide
        self._rest = bytearray()  # of an event that has not ended

    def feed(self, data: bytes) -> bytes:
        """What of it may be passed on now. Raises WorkerLost for an event without end."""
        whole = self._whole(data)
        if len(self._rest) > MAX_EVENT_BYTES:
            raise WorkerLost(f"the server sent an event of more than {MAX_EVENT_BYTES} bytes")
        if not whole:
            return b""
        self.events += 1
        if not _tells(whole):
            return whole
        return b"".join(event for event in _split(whole) if self._keep(event))

    @property
    def room(self) -> int:
        """Bytes that may be fed without being too many."""
        return MAX_EVENT_BYTES - len(self._rest)

    @property
    def holds(self) -> bool:
        """Whether an event has begun that has not ended."""
        return bool(self._rest)

    def rest(self) -> bytes:
        """What is held of an event, which is then forgotten."""
        held = bytes(self._rest)
        self._rest.clear()
        return held

    def _whole(self, data: bytes) -> bytes:
        """The events that ``data`` completes. What is held of one is neither copied nor searched again."""
        rest = self._rest
        if not rest:
            end = _end_of_events(data, 0)
            rest += data[end:]
            return data[:end]
        before = max(len(rest) - 3, 0)  # an empty line may have begun there
        rest += data
        end = _end_of_events(rest, before)
        whole = bytes(rest[:end])
        del rest[:end]
        return whole

    def _keep(self, event: bytes) -> bool:
        """False for an event that only tells usage, where the client did not ask."""
        payload = _payload(event)
        if payload == _DONE:
            self.done = True
            return True
        try:
            chunk = _chunk.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return True  # not ours to judge
        if chunk.error != NULL:
            self.failed = True
        if chunk.usage is None:
            return True
        self.usage = chunk.usage
        return not (self._hide and chunk.choices == [])


def read_body(body: bytes, of_any_kind: bool = False) -> Usage | None:
    """Usage of an answer that is not streamed. Raises WorkerLost for an error that poses as an answer, and
    for what is no JSON object, unless it may be ``of_any_kind``."""
    try:
        told = _body.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        if of_any_kind:
            return None
        raise WorkerLost(f"the server's answer is no JSON object: {str(error)[:100]}") from None
    if told.object == "error" or told.error != NULL:
        raise WorkerLost("the server answered 200 with an error")
    return told.usage


def _tells(events: bytes) -> bool:
    """Whether they may hold something that matters here; most do not, and are not looked into."""
    return b'"usage"' in events or b"[DONE]" in events or b'"error"' in events


def _end_of_events(data: bytes | bytearray, start: int) -> int:
    """Behind the last whole event, 0 where none ends after ``start``: events end with an empty line."""
    ends = (b"\n\n", b"\r\n\r\n")
    return max([at + len(end) if (at := data.rfind(end, start)) >= 0 else 0 for end in ends])


def _split(whole: bytes) -> list[bytes]:
    """Single events, each with its empty line."""
    end = b"\r\n\r\n" if b"\r\n\r\n" in whole else b"\n\n"
    parts = whole.split(end)
    return [part + end for part in parts[:-1]] + ([parts[-1]] if parts[-1] else [])


def _payload(event: bytes) -> bytes:
    lines = [line[5:].strip() for line in event.splitlines() if line.startswith(b"data:")]
    return b"\n".join(lines)
