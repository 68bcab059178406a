"""One request relayed to a server that is not ours: placed, sent on, its answer passed on as it comes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

from warmfleet_proto.errors import BadRequest, Rejected, WorkerLost
from warmfleet_proto.limits import TOKEN_BYTES
from warmfleet_proto.router_pb2 import FinishRequest, ListWorkersRequest, ProgressRequest, RouteRequest

from warmfleet_router.backends.attempt import past_deadline
from warmfleet_router.events.identity import salt_of
from warmfleet_router.gateway.intake import Tenant
from warmfleet_router.gateway.outlet import Outlet
from warmfleet_router.gateway.placing import Placed, Upstream
from warmfleet_router.servers import sse, text
from warmfleet_router.servers.ask import Ask
from warmfleet_router.servers.catalogue import RANK, Server, Servers
from warmfleet_router.servers.connection import Reply
from warmfleet_router.servers.pool import ServerPool, refused

MAX_BODY_BYTES = 64 << 20  # of an answer that is not streamed
MAX_ERROR_BYTES = 256 << 10
SILENT_S = 30.0  # of a stream before its first event, after which a missed deadline speaks against the server
_BUSY = (429, 503)
_EVENTS = "text/event-stream"


class RelayRequest(NamedTuple):
    request_id: str
    tenant: Tenant
    ask: Ask
    salt: str  # as the server gets it
    token_ids: bytes  # packed; empty: its text is the key
    deadline: float
    path: str


class Answer(NamedTuple):
    """What the client gets, but for the body of a stream."""

    status: int
    content_type: str
    body: bytes


def routed(wanted: RelayRequest, servers: Servers, gateway_id: str) -> RouteRequest:
    """What the router is asked: by token ids, or by the text in their place."""
    model, token_ids = wanted.ask.model, wanted.token_ids
    salt = salt_of(servers.adapter(model), wanted.salt)
    context = servers.context(model)
    if not token_ids:
        token_ids, salt = text.ids_of(wanted.ask), text.salt_of(wanted.ask, wanted.salt)
        if context:  # an estimate refuses nobody
            token_ids = token_ids[: max(context - 1, 1) * TOKEN_BYTES]
    prompt_tokens = len(token_ids) // TOKEN_BYTES
    return RouteRequest(
        request_id=wanted.request_id,
        gateway_id=gateway_id,
        model=model,
        tenant=wanted.tenant.name,
        salt=salt,
        token_ids=token_ids,
        prompt_tokens=prompt_tokens,
        max_tokens=_answer_tokens(wanted.ask, context - prompt_tokens),
        choices=wanted.ask.choices,
        bypass_cache=wanted.ask.scores_prompt,
        exclude=servers.ours(model),
    )


def _answer_tokens(ask: Ask, room: int) -> int:
    """Tokens of the answer that a server must have room for. If none has, the servers refuse the request
    themselves."""
    return max(min(ask.max_tokens, room), 0)


class Relay(Placed):
    """A request to a server that is not ours. After ``start`` there is an ``answer``; the rest of a stream
    comes by ``pour``."""

    def __init__(self, upstream: Upstream, servers: Servers, pool: ServerPool, wanted: RelayRequest) -> None:
        super().__init__(upstream, wanted.deadline)
        self.wanted = wanted
        self.answer = Answer(502, "", b"")
        self.events = sse.Stream(hide=not wanted.ask.wants_usage)
        self.usage: sse.Usage | None = None
        self._servers = servers
        self._pool = pool
        self._route_request = routed(wanted, servers, upstream.gateway_id)
        self._tokens = self._route_request.prompt_tokens
        self._reply: Reply | None = None
        self._first = b""
        self._ttft_s = 0.0
        self._silent = False  # its server has not begun to answer in a time in which servers do

    # ---- for the record

    @property
    def prompt_tokens(self) -> int:
        return self.usage.prompt_tokens if self.usage and self.usage.prompt_tokens else self._tokens

    @property
    def model(self) -> str:
        return self.wanted.ask.model

    @property
    def others(self) -> list[str]:
        """Names of all servers that have the model."""
        return [server.name for server in self._servers.serving(self.model)]

    @property
    def salt(self) -> bytes:
        """Salt of the root that the prompt is hashed under."""
        return self._route_request.salt

    @property
    def choices(self) -> int:
        return self.wanted.ask.choices

    @property
    def stream(self) -> bool:
        return self.wanted.ask.stream

    @property
    def streaming(self) -> bool:
        """The answer is a stream, not an error or a whole body."""
        return self.answer.status == 200 and self.wanted.ask.stream

    # ---- placing

    def _route(self) -> RouteRequest:
        self._route_request.exclude[:] = [*self._servers.ours(self.model), *self.tried]
        return self._route_request

    def _told(self, report: FinishRequest) -> None:
        usage = self.usage or self.events.usage
        cached = usage.cached_tokens if usage else None
        report.ttft_s = self._ttft_s
        if self._silent:  # the deadline was the client's, but that much patience is enough
            report.outcome, report.reason = FinishRequest.DROPPED, "silent"
        report.cached_known = cached is not None
        report.keyed_on_text = not self.wanted.token_ids
        report.prompt_tokens = sse.counted(usage.prompt_tokens if usage else 0)
        self.cached_tokens = report.cached_tokens = sse.counted(cached)

    # ---- the server's side

    async def _submit(self) -> None:
        now = self._upstream.clock()
        server = await server_at(self._upstream, self._servers, self.placement.address)
        self.events = sse.Stream(hide=not self.wanted.ask.wants_usage)
        adapter = self._servers.adapter_for(server, self.model)
        body = self.wanted.ask.outgoing(self.wanted.salt, server.knows_salts, adapter)
        headers = {"Content-Type": "application/json"}
        if server.knows_ids:
            headers["X-Request-Id"] = self.wanted.request_id
        if server.rank:
            headers[RANK] = server.rank
        try:
            async with self._in_time():
                self._reply = await self._pool.post(server.url, self.wanted.path, body, headers)
                await self._begin(self._reply)
        except Rejected:
            late = self._upstream.clock()
            self._silent = self.wanted.ask.stream and late >= self._deadline and late - now >= SILENT_S
            raise
        if self.streaming:  # of a whole answer nobody sees the first token
            self._ttft_s = self._upstream.clock() - now

    def _progressed(self) -> None:
        progress = ProgressRequest(booking=self.placement.booking, ttft_s=self._ttft_s, cached_later=True)
        self._upstream.reports.progress(progress)

    async def _begin(self, reply: Reply) -> None:
        """Reads the answer up to where the request could no longer be sent to another server."""
        if reply.status in _BUSY:
            raise refused(reply.status, reply.retry_after)
        if reply.status >= 500 or 300 <= reply.status < 400:
            raise WorkerLost(f"the server answered {reply.status}")
        if reply.status == 401:  # clients' keys are not sent on: it is the operator's that is wrong
            raise WorkerLost("the server answered 401: `backends` here gives it no API key, or a wrong one")
        if reply.status != 200:
            self.answer = Answer(reply.status, reply.content_type, await reply.whole(MAX_ERROR_BYTES))
        elif self.wanted.ask.stream:
            if reply.content_type != _EVENTS:
                raise WorkerLost(f"the server answered {reply.content_type[:80]}, not a stream of events")
            self._first = await self._piece(reply)
            if self.events.failed:
                raise WorkerLost("the server answered 200 with an error")
            self.answer = Answer(200, _EVENTS, b"")
        else:
            body = await reply.whole(MAX_BODY_BYTES)
            self.usage = sse.read_body(body, of_any_kind=self.wanted.ask.whole)
            self.answer = Answer(200, reply.content_type, body)

    async def _piece(self, reply: Reply) -> bytes:
        """The first whole events that are for the client; b"" only at the end of the stream."""
        while data := await reply.part():
            piece = self.events.feed(data)
            if piece or self.events.done:
                return piece
        raise WorkerLost("the server's stream ended before its end")

    async def pour(self, outlet: Outlet) -> None:
        """The stream's events as they come, the first of them known already. Raises the four exceptions."""
        reply, events = self._reply, self.events
        assert reply is not None

        def passed(data: bytes) -> bool:
            piece = events.feed(data)
            if piece:
                outlet.take(piece)
            return not (events.done or events.failed or outlet.behind)

        await outlet.begin(self._first)
        self._progressed()  # what is learned of a first token does not hold it up
        async with self._in_time():
            while not events.done and not events.failed:
                await outlet.drained()
                await reply.pour(passed)
                if reply.exhausted and not events.done and not events.failed:
                    raise WorkerLost("the server's stream ended before its end")
        self.usage = events.usage
        if events.failed:
            raise WorkerLost("the server's stream ended with an error")

    def _let_go(self) -> None:
        """A connection that is not at its end is closed: that cancels the request there."""
        reply, self._reply = self._reply, None
        if reply is not None:
            reply.release(over=self.events.done)

    @asynccontextmanager
    async def _in_time(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(max(self._deadline - self._upstream.clock(), 0.001)):
                yield
        except TimeoutError:
            raise past_deadline() from None


async def server_at(upstream: Upstream, servers: Servers, address: str) -> Server:
    """Where a placement leads. It may have joined after the last look: how it is talked to, and that it keeps
    tenants apart, is known by another one. Raises Rejected."""
    server = servers.of(address)
    if server is None:
        servers.update(await upstream.router.list_workers(ListWorkersRequest()))
        server = servers.of(address)
    if server is None:
        raise Rejected("the server has left")
    return server


def refusal(answer: Answer) -> BadRequest:
    """How an answer of 4xx is counted; the client gets it as the server gave it."""
    return BadRequest("refused by the server", None, answer.status)
