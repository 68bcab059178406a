"""Requests for models whose servers are not ours: from the body to the last byte of the answer."""

import asyncio
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet

from aiohttp import web
from warmfleet_proto.errors import Rejected, WarmfleetError
from warmfleet_proto.router_pb2 import ListWorkersResponse, RouteRequest
from warmfleet_proto.tasks import cancelled

from warmfleet_router.gateway import intake
from warmfleet_router.gateway.aliases import Aliases
from warmfleet_router.gateway.answer import error_event
from warmfleet_router.gateway.http import REQUEST_ID, Answered, Events
from warmfleet_router.gateway.outlet import Outlet
from warmfleet_router.gateway.pick import Header, Pick
from warmfleet_router.gateway.placing import Upstream
from warmfleet_router.gateway.record import Record, carried_out
from warmfleet_router.gateway.relay import Relay, RelayRequest, refusal, routed, server_at
from warmfleet_router.prompt.encoder import PromptEncoder
from warmfleet_router.servers import ask, sse
from warmfleet_router.servers.addresses import Addresses
from warmfleet_router.servers.backend import bearer
from warmfleet_router.servers.catalogue import RANK, Server, Servers
from warmfleet_router.servers.pool import ServerPool
from warmfleet_router.servers.tokens import Tokens

INLINE_BYTES = 1 << 20  # of a body; looked through in a few ms

GONE_S = 20.0  # of a server that is lost: it answers nothing, and nothing comes of what it had begun
_EVENTS = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}


class Relays:
    """``keys``: of servers, by URL; ``encoders``: prompts of models whose tokenizer is configured here."""

    def __init__(
        self,
        upstream: Upstream,
        keys: Mapping[str, str],
        encoders: Mapping[str, PromptEncoder],
        aliases: Aliases,
    ) -> None:
        self._upstream = upstream
        self._aliases = aliases
        self._servers = Servers()
        self._keys = keys
        self._pool = ServerPool(keys)
        self._addresses = Addresses()
        self._lost: dict[str, float] = {}  # servers, by when they were first seen to be
        self._giving_up: dict[str, asyncio.Task[None]] = {}  # what these have begun, if they are silent
        self._tokens = Tokens(encoders, self._pool)

    def update(self, fleet: ListWorkersResponse) -> None:
        self._servers.update(fleet)
        self._give_up(self._servers.lost)

    def _give_up(self, lost: AbstractSet[str]) -> None:
        """Answers of servers that have been lost for a while: a machine that hangs closes no connection."""
        now = self._upstream.clock()
        self._lost = {url: self._lost.get(url, now) for url in lost}
        for url, since in self._lost.items():
            if now - since >= GONE_S and url not in self._giving_up:
                self._giving_up[url] = asyncio.create_task(self._gives_up(url))

    async def _gives_up(self, url: str) -> None:
        try:
            await self._pool.give_up(url, GONE_S)
        finally:
            self._giving_up.pop(url, None)

    def models(self) -> dict[str, int]:
        """Served name -> context in tokens."""
        return self._servers.models()

    def serves(self, body: bytes) -> bool:
        return bool(self._servers) and ask.model_of(body) in self._servers

    async def close(self) -> None:
        await cancelled(*self._giving_up.values())
        await self._addresses.close()
        await self._pool.close()

    def mixes(self, body: bytes) -> bool:
        """Whether our own workers serve its model as well."""
        return bool(self._servers.ours(ask.model_of(body)))

    async def relay(
        self,
        request: web.Request,
        body: bytes,
        tenant: intake.Tenant,
        deadline: float,
        token_ids: bytes | None = None,
    ) -> Relay:
        """Not started. ``token_ids`` of its prompt, where they are known. Raises BadRequest and Rejected."""
        wanted = await self._wanted(request[REQUEST_ID], body, tenant, deadline, request.path, token_ids)
        return Relay(self._upstream, self._servers, self._pool, wanted)

    async def served(
        self, request: web.Request, body: bytes, tenant: intake.Tenant, deadline: float, record: Record
    ) -> Answered:
        """Answers by a server that is not ours. Raises the four exceptions."""
        relay = await self.relay(request, body, tenant, deadline)
        answering = self._relayed(request, relay, record)
        return await carried_out(self._upstream, record, relay, [relay], answering)

    async def _relayed(self, request: web.Request, relay: Relay, record: Record) -> Answered:
        record.generations = [relay]
        await relay.start()
        record.placed()
        return await self.respond(request, relay, record)

    async def pick(
        self,
        request_id: str,
        body: bytes,
        tenant: intake.Tenant,
        path: str,
        subset: AbstractSet[str],
        fallbacks: int,
        usage: bool,
    ) -> Pick:
        """Where somebody else should send a request: one of ``subset``, or of all when that is empty.

        ``usage``: a stream should end with it, whether the client asked or not. Raises BadRequest and
        Rejected.
        """
        body = self._aliases.resolved(body)
        wanted = await self._wanted(request_id, body, tenant, 0.0, path)
        servers = self._servers.serving(wanted.ask.model)
        within = await self._within(servers, subset) if subset else servers
        if servers and not within:
            raise Rejected("no server of the subset serves the model")
        asked = routed(wanted, self._servers, self._upstream.gateway_id)
        if len(within) < len(servers):
            allowed = set(within)
            asked.exclude.extend(server.name for server in servers if server not in allowed)
        placement = await self._upstream.router.route(asked)
        self._upstream.reports.booked(placement.booking)
        pick = Pick(self._upstream, placement, body)
        pick.keyed_on_text = not wanted.token_ids
        pick.hide_usage = usage and wanted.ask.stream and not wanted.ask.wants_usage
        pick.ends_with_usage = usage or wanted.ask.wants_usage
        try:
            chosen = await server_at(self._upstream, self._servers, placement.address)
            if subset and not await self._within([chosen], subset):  # it was not known, and so not excluded
                raise Rejected("the server that was chosen is not of the subset")
            self._address(pick, chosen, wanted)
            for server in [chosen, *self._others(chosen, within, fallbacks)]:
                endpoint = server.place.endpoint
                pick.endpoints += await self._addresses.of(endpoint) or [endpoint]
        except BaseException as error:
            pick.ended(0, None, error)
            raise
        return pick

    def _address(self, pick: Pick, chosen: Server, wanted: RelayRequest) -> None:
        """Path, headers and body with which the request is to be sent to ``chosen``."""
        pick.prefix, pick.headers = chosen.place.prefix, self._headers(chosen, wanted.tenant)
        salt = wanted.salt if wanted.tenant.salt and chosen.knows_salts else ""
        adapter = self._servers.adapter_for(chosen, wanted.ask.model)
        if pick.hide_usage:
            pick.body = wanted.ask.outgoing(salt, chosen.knows_salts, adapter)
        elif salt or adapter:
            pick.body = wanted.ask.salted(salt, adapter)

    async def _within(self, servers: Sequence[Server], subset: AbstractSet[str]) -> list[Server]:
        """Those of ``servers`` that ``subset`` names, as they are configured or by an address."""

        async def named(endpoint: str) -> bool:
            return endpoint in subset or not subset.isdisjoint(await self._addresses.of(endpoint))

        return [server for server in servers if await named(server.place.endpoint)]

    def _others(self, chosen: Server, within: Sequence[Server], most: int) -> list[Server]:
        """Servers that could take the request in place of ``chosen``, sent with the same headers."""
        place, key = chosen.place, self._key(chosen)
        found: dict[str, Server] = {}
        for server in within:
            if len(found) == most:
                break
            endpoint, prefix = server.place.endpoint, server.place.prefix
            if endpoint != place.endpoint and prefix == place.prefix and self._key(server) == key:
                found[endpoint] = server
        return list(found.values())

    def _key(self, server: Server) -> str:
        return self._keys.get(server.url, "") if self._keys else ""

    def _headers(self, server: Server, tenant: intake.Tenant) -> tuple[Header, ...]:
        """Headers that are set or taken away, whatever the client has sent."""
        headers: list[Header] = []
        if server.rank:
            headers.append((RANK, server.rank))
        if key := self._key(server):
            headers += [(name.lower(), value) for name, value in bearer(key).items()]
        elif tenant is not intake.ANONYMOUS:  # its key is for us alone
            headers.append(("authorization", None))
        return tuple(headers)

    async def supposed(
        self, body: bytes, tenant: intake.Tenant, path: str, token_ids: bytes | None = None
    ) -> RouteRequest:
        """What a request that is not made would ask of the router. Raises BadRequest and Rejected."""
        wanted = await self._wanted("", body, tenant, 0.0, path, token_ids)
        return routed(wanted, self._servers, self._upstream.gateway_id)

    async def _wanted(
        self,
        request_id: str,
        body: bytes,
        tenant: intake.Tenant,
        deadline: float,
        path: str,
        token_ids: bytes | None = None,
    ) -> RelayRequest:
        kind = path.endswith("/chat/completions"), path in ask.WHOLE
        if len(body) <= INLINE_BYTES:
            asked = ask.parse(body, *kind)
        else:
            asked = await asyncio.to_thread(ask.parse, body, *kind)
        salt = asked.salt(tenant.salt)
        if token_ids is None:
            servers, context = self._servers.serving(asked.model), self._servers.context(asked.model)
            token_ids = await self._tokens.of(asked, tenant.salt, servers, context)
        return RelayRequest(request_id, tenant, asked, salt, token_ids, deadline, path)

    async def respond(self, request: web.Request, relay: Relay, record: Record) -> Answered:
        """What a started relay answers; as ``served``."""
        answer = relay.answer
        headers = {"X-Warmfleet-Worker": relay.placement.worker}
        if relay.streaming:
            response = Events(headers=_EVENTS | headers)
            writer = await response.prepare(request)
            assert writer is not None
            outlet = Outlet(request, writer, record, self._upstream.clock)
            return response, await self._stream(response, relay, outlet, record)
        headers["Content-Type"] = (
            answer.content_type or "application/octet-stream"
        )  # as it is: not to be parsed
        whole = web.Response(status=answer.status, body=answer.body, headers=headers)
        if answer.status != 200:
            failure = refusal(answer)
            relay.finish(failure)
            return whole, failure
        completion = sse.counted(relay.usage.completion_tokens if relay.usage else None)
        record.tokens(completion, self._upstream.clock())
        relay.finish(completion_tokens=completion)
        return whole, None

    async def _stream(
        self, response: web.StreamResponse, relay: Relay, outlet: Outlet, record: Record
    ) -> Exception | None:
        """Raises ConnectionError when the client has left."""
        try:
            await relay.pour(outlet)
        except WarmfleetError as error:
            relay.finish(error)
            response.force_close()
            if not relay.events.failed:  # else the server has told it by itself
                await response.write(error_event(error))
            return error
        usage = relay.usage
        if usage and usage.completion_tokens is not None:
            record.completion_tokens = sse.counted(usage.completion_tokens)
        relay.finish(completion_tokens=record.completion_tokens)
        await response.write_eof()
        return None
