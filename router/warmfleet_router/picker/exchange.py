"""One HTTP request as Envoy tells of it, message by message, and what it is answered."""

from collections.abc import Awaitable, Callable, Container, Iterator, Sequence
from functools import partial
from itertools import repeat
from typing import Any

from envoy.extensions.filters.http.ext_proc.v3.processing_mode_pb2 import ProcessingMode
from warmfleet_proto.errors import BadRequest, WarmfleetError

from warmfleet_router.gateway import intake
from warmfleet_router.gateway.pick import Header, Pick
from warmfleet_router.gateway.relaying import Relays
from warmfleet_router.picker import replies
from warmfleet_router.picker.answer import Answer, Held, is_stream
from warmfleet_router.servers.ask import WHOLE
from warmfleet_router.servers.backend import Backend
from warmfleet_router.servers.catalogue import place_of

_PATHS = ("/v1/chat/completions", "/v1/completions", *WHOLE)
_BODILESS = ("/v1/models",)  # what tenants may ask of servers beside completions
_DUPLEX = ProcessingMode.BodySendMode.FULL_DUPLEX_STREAMED
_READ = frozenset((":path", "authorization", "x-request-id"))  # of a request's headers
_ANSWERED = frozenset((":status", "content-type", "content-encoding"))  # of a response's
_FALLBACKS = 2  # endpoints named behind the choice
_UNTIMED = repeat(False)

Picking = Callable[[], Awaitable[Sequence[replies.Reply]]]


class Exchange:
    """``take`` answers a message, ``ended`` when Envoy has closed the stream, however it did.

    ``listed``: a server among those that Envoy sends to in turn; they have its key and base path.
    ``held``: of the answers of all exchanges. ``timings``: of each pick, whether Envoy is asked for
    its answer, piece by piece, to see when the first token comes: headers may come long before (vLLM's do).
    """

    def __init__(
        self,
        relays: Relays,
        tenants: intake.Tenants,
        body_bytes: int,
        listed: Backend | None = None,
        held: Held | None = None,
        timings: Iterator[bool] = _UNTIMED,
    ) -> None:
        self._relays = relays
        self._tenants = tenants
        self._most = body_bytes
        self._listed = listed
        self.keys = bool(tenants)  # of clients: nothing of a request goes on before its key is known
        self._headers: dict[str, str] = {}
        self._subset: frozenset[str] = frozenset()
        self._sent = bytearray()  # of the body, and how much there was, kept or not
        self._size = 0
        self._duplex = self._echo = False
        self._learns = False  # bodies of answers come here
        self._timings = timings
        self.timed = self._unseen = False
        self.over = False  # Envoy can do without it from the latest piece of the answer on
        self._settling = False
        self._tenant: intake.Tenant | None = None  # of which this one is in flight
        self._pick: Pick | None = None
        self._status = 0
        self._held = held or Held()
        self._answer = Answer(False, self._held)

    def take(self, message: Any) -> Sequence[replies.Reply] | Picking:
        """At once, but for the end of a body: what it returns is awaited before the next message is given."""
        kind = message.WhichOneof("request")
        match kind:
            case "request_headers":
                return self._begin(message)
            case "request_body":
                return self._body(message.request_body.body, message.request_body.end_of_stream)
            case "response_headers":
                self._answered(message.response_headers)
                if self.timed:
                    return [replies.watched()]
            case "response_body":
                return [self._passed(message.response_body)]
            case "request_trailers" if self._duplex and self._pick is None:
                return partial(self._picked, replies.goes_on(kind))
        return [replies.goes_on(kind)] if kind else []

    @property
    def picked(self) -> bool:
        return self._pick is not None

    def settle(self) -> bool:
        """Envoy is to go on without it: whether that can be now, else it can be with the next piece."""
        self._settling = True
        return self._answer.settle()

    def ended(self, error: BaseException | None = None) -> None:
        tenant, self._tenant = self._tenant, None
        if tenant is not None:
            self._tenants.leave(tenant)
        if self._pick is None:
            return
        if self._unseen and error is None:
            self._pick.unseen()
        else:
            self._pick.ended(self._status, self._answer.usage(), error)

    def _begin(self, message: Any) -> Sequence[replies.Reply]:
        self._headers = _values(message.request_headers, _READ)
        self._duplex = message.protocol_config.request_body_mode == _DUPLEX
        answers = message.protocol_config.response_body_mode
        self._echo, self._learns = answers == _DUPLEX, bool(answers)
        self._subset = _subset(message.metadata_context)
        last = message.request_headers.end_of_stream
        try:
            changed = self._let_in(last) if self.keys else ()
        except WarmfleetError as error:
            return self._refused(error)
        if self._duplex and not last:
            return []  # answered with the body: only then is the endpoint known
        return [replies.goes_on_with(changed) if changed else replies.goes_on("request_headers")]

    def _let_in(self, last: bool) -> tuple[Header, ...]:
        """What its headers become; ``last``: it has no body, and goes to a server in turn. Raises BadRequest.

        What comes with trailers but no body is never heard of again, so the key must go now in any case.
        """
        self._tenants.of(self._headers.get("authorization"))
        path = self._headers.get(":path", "")
        if path.partition("?")[0] not in (_BODILESS if last else _PATHS):
            raise _not_served(path)
        if not last or self._listed is None:
            return (("authorization", None),)
        prefix = place_of(self._listed.base).prefix
        key = self._listed.headers.get("Authorization")
        return (("authorization", key), *(((":path", prefix + path),) if prefix else ()))

    def _body(self, part: bytes, last: bool) -> Sequence[replies.Reply] | Picking:
        self._size += len(part)
        if self._pick is not None:
            return self._refused(BadRequest("body: it had ended already", "body"))
        if self._size > self._most:
            return self._refused(BadRequest(f"body: more than {self._most} bytes", "body", 413))
        self._sent += part
        return self._picked if last else []

    async def _picked(self, *more: replies.Reply) -> Sequence[replies.Reply]:
        try:
            return [*await self._whole(bytes(self._sent)), *more]
        except WarmfleetError as error:
            return self._refused(error)
        finally:
            self._sent.clear()

    def _refused(self, error: WarmfleetError) -> Sequence[replies.Reply]:
        self.ended(error)
        return [replies.refused(error)]

    async def _whole(self, body: bytes) -> Sequence[replies.Reply]:
        path = self._headers.get(":path", "").partition("?")[0]
        if path not in _PATHS:
            raise _not_served(path)
        tenant = self._tenants.of(self._headers.get("authorization"))
        self._tenants.enter(tenant)
        self._tenant = tenant
        request_id = intake.request_id(self._headers.get("x-request-id"))
        self._pick = await self._relays.pick(
            request_id, body, tenant, path, self._subset, _FALLBACKS, self._learns
        )
        self._answer = Answer(self._pick.hide_usage, self._held)
        self.timed = not self._learns and not self._duplex and next(self._timings)
        outgoing, endpoints, headers = self._pick.body, self._pick.endpoints, self._pick.headers
        if self._pick.prefix:
            headers += ((":path", self._pick.prefix + self._headers[":path"]),)
        if self._duplex:
            return list(replies.picked_duplex(endpoints, headers, outgoing, outgoing != body))
        return [replies.picked(endpoints, headers, None if outgoing == body else outgoing)]

    def _answered(self, headers: Any) -> None:
        values = _values(headers, _ANSWERED)
        status, kind = values.get(":status", ""), values.get("content-type", "")
        self._status = int(status) if status.isdecimal() and len(status) == 3 else 0
        if self._pick is None or self._status != 200:
            return
        if self._learns or self.timed:
            self._answer.begins(kind, values.get("content-encoding", ""))
        else:
            self._unseen = self._duplex and is_stream(kind)  # Envoy's talk ends with these headers

    def _passed(self, part: Any) -> replies.Reply:
        """Bodies come here only where the operator has them sent, for the usage in them, or for the time."""
        body, last = part.body, part.end_of_stream
        if self._pick is not None and self._answer.streaming and body:
            self._pick.answering()
            # Tenants' requests in flight are counted until they end.
            learns_nothing = self.timed and not self.keys and not self._pick.ends_with_usage
            self.over = self._settling or learns_nothing
        passed = self._answer.feed(body, last)
        if self._echo:
            return replies.passed_on("response_body", passed, last)
        return replies.goes_on("response_body") if passed == body else replies.passed(passed)


def _not_served(path: str) -> BadRequest:
    return BadRequest(f"path: {path[:100]!r} is not served here", "path", 404)


def _values(headers: Any, names: Container[str]) -> dict[str, str]:
    """Those headers of an HTTP message that are in ``names``."""
    return {
        header.key: (header.raw_value or header.value.encode()).decode(errors="replace")
        for header in headers.headers.headers
        if header.key in names
    }


def _subset(metadata: Any) -> frozenset[str]:
    """Endpoints that the gateway restricts the choice to; empty: it does not."""
    space = metadata.filter_metadata
    if replies.SUBSET_NAMESPACE not in space:
        return frozenset()
    value = space[replies.SUBSET_NAMESPACE].fields[replies.SUBSET]
    texts = [item.string_value for item in value.list_value.values] or [value.string_value]
    return frozenset(part.strip() for text in texts for part in text.split(",") if part.strip())
