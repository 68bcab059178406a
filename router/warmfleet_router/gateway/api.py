"""The OpenAI routes: each request from its bytes to its last event, counted once and logged once."""

from collections.abc import Awaitable, Callable

from aiohttp import web
from warmfleet_proto.errors import BadRequest, Rejected, WarmfleetError

from warmfleet_router.gateway import intake, openai, schema
from warmfleet_router.gateway.aliases import Aliases
from warmfleet_router.gateway.answer import Answer, together
from warmfleet_router.gateway.catalogue import Catalogue, not_served
from warmfleet_router.gateway.either import Either
from warmfleet_router.gateway.generation import Generation, GenerationRequest
from warmfleet_router.gateway.http import REQUEST_ID, Answered, Events, error_response
from warmfleet_router.gateway.job import Job, Preparer
from warmfleet_router.gateway.limits import Limits
from warmfleet_router.gateway.placing import Upstream
from warmfleet_router.gateway.record import Record, carried_out
from warmfleet_router.gateway.relay import Relay
from warmfleet_router.gateway.relaying import Relays
from warmfleet_router.metrics import Metrics
from warmfleet_router.servers.ask import WHOLE, model_of

Parse = Callable[[bytes, intake.Tenant], Awaitable[Job]]

_EVENTS = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}


class Api:
    def __init__(
        self,
        upstream: Upstream,
        preparer: Preparer,
        catalogue: Catalogue,
        tenants: intake.Tenants,
        limits: Limits,
        metrics: Metrics,
        relays: Relays,
        aliases: Aliases,
    ) -> None:
        self._upstream = upstream
        self._preparer = preparer
        self._catalogue = catalogue
        self._tenants = tenants
        self._limits = limits
        self._metrics = metrics
        self._relays = relays
        self._aliases = aliases
        self._in_flight = 0
        self.draining = False
        self.lacks = ""  # without what nothing can be served now

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/v1/chat/completions", self._chat),
            web.post("/v1/completions", self._completions),
            *[web.post(path, self._whole) for path in WHOLE],
            web.get("/v1/models", self._models, allow_head=False),
            web.get("/v1/models/{name:.+}", self._model, allow_head=False),  # names may hold slashes
            web.get("/health", self._health, allow_head=False),
        ]

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        async def parse(body: bytes, tenant: intake.Tenant) -> Job:
            asked = await self._preparer.parsed(schema.parse_chat, body)
            return await self._preparer.chat(asked, tenant.salt)

        return await self._accounted(request, parse)

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        async def parse(body: bytes, tenant: intake.Tenant) -> Job:
            asked = await self._preparer.parsed(schema.parse_completion, body)
            return await self._preparer.completion(asked, tenant.salt)

        return await self._accounted(request, parse)

    async def _whole(self, request: web.Request) -> web.StreamResponse:
        """What only servers do that are not ours."""

        async def parse(body: bytes, tenant: intake.Tenant) -> Job:
            raise BadRequest(f"no server of the model answers {request.path}", None, 404)

        return await self._accounted(request, parse)

    async def _models(self, request: web.Request) -> web.Response:
        body = openai.models_response(self._served_models(request))
        return web.Response(body=body, content_type="application/json")

    async def _model(self, request: web.Request) -> web.Response:
        models, name = self._served_models(request), request.match_info["name"]
        if name not in models:
            raise not_served(name, models)
        return web.Response(body=openai.model_response(name, models[name]), content_type="application/json")

    def _served_models(self, request: web.Request) -> dict[str, int]:
        """Names and contexts. Raises BadRequest when the key is not known."""
        self._tenants.of(request.headers.get("Authorization"))
        return self._catalogue.beside(self._relays.models(), self._aliases)

    async def _health(self, request: web.Request) -> web.Response:
        lacks = self.lacks or ("" if self._catalogue.ready or self._relays.models() else "a worker")
        state = "draining" if self.draining else f"waiting for {lacks}" if lacks else "ok"
        return web.json_response({"status": state}, status=200 if state == "ok" else 503)

    async def _accounted(self, request: web.Request, parse: Parse) -> web.StreamResponse:
        """One metric set and one log line, however it ends."""
        record = Record(self._metrics, request[REQUEST_ID], self._upstream.clock())
        failure: BaseException | None = None
        self._in_flight += 1
        try:
            response, failure = await self._served(request, parse, record)
            return response
        except WarmfleetError as error:
            failure = error
            return error_response(error)
        except BaseException as error:
            failure = error
            raise
        finally:
            self._in_flight -= 1
            record.ended(failure, self._upstream.clock())
            failure = None  # its traceback holds this frame, and with it the whole body

    async def _served(self, request: web.Request, parse: Parse, record: Record) -> Answered:
        """Once the key and the bounds on requests in flight allow it. Raises the four exceptions."""
        deadline = self._upstream.clock() + intake.timeout_s(request, self._limits.request_s)
        tenant = self._tenants.of(request.headers.get("Authorization"))
        record.tenant = tenant.name
        if self._in_flight > self._limits.in_flight:
            raise Rejected(f"{self._limits.in_flight} requests are in flight already")
        with self._tenants.in_flight(tenant):
            return await self._answered(request, parse, record, tenant, deadline)

    async def _answered(
        self, request: web.Request, parse: Parse, record: Record, tenant: intake.Tenant, deadline: float
    ) -> Answered:
        """A request that was let in: by our own workers, by servers that are not ours, or by either."""
        body = await intake.read_body(request, self._limits.body_bytes)
        body = await self._preparer.parsed(self._aliases.resolved, body)
        if self._relays.serves(body):
            if self._relays.mixes(body) and (job := await self._single(body, parse, tenant)):
                return await self._mixed(request, body, job, tenant, deadline, record)
            return await self._relays.served(request, body, tenant, deadline, record)
        self._catalogue.check(model_of(body), self._relays.models(), self._aliases)
        job = await parse(body, tenant)
        generations = self._generations(request, job, tenant, deadline)
        answering = self._generated(request, job, generations, record)
        return await carried_out(self._upstream, record, job, generations, answering)

    async def _generated(
        self, request: web.Request, job: Job, generations: list[Generation], record: Record
    ) -> Answered:
        """Answers by our own workers: every prompt is started, then they are answered together."""
        record.generations = generations
        await together([generation.start() for generation in generations])
        record.placed()
        return await self._respond(request, job, generations, record)

    async def _single(self, body: bytes, parse: Parse, tenant: intake.Tenant) -> Job | None:
        """The job that it would be for our own workers. None for what only other servers can do, or where the
        tokenizer is not known here."""
        if not self._catalogue.ready:
            return None
        try:
            job = await parse(body, tenant)
        except BadRequest:
            return None
        return job if len(job.prompts) == 1 else None

    async def _mixed(
        self,
        request: web.Request,
        body: bytes,
        job: Job,
        tenant: intake.Tenant,
        deadline: float,
        record: Record,
    ) -> Answered:
        """Our own workers and servers serve its model: whoever is cheaper answers."""
        relay = await self._relays.relay(request, body, tenant, deadline, job.prompts[0].token_ids)
        # One salt for both, as servers get it: the router hashes a prompt with one.
        salted = tenant._replace(salt=relay.salt)
        (generation,) = self._generations(request, job, salted, deadline)
        generation.others = relay.others
        either = Either(self._upstream, deadline, relay, generation)
        answering = self._by_either(request, job, either, record)
        return await carried_out(self._upstream, record, job, [either], answering)

    async def _by_either(self, request: web.Request, job: Job, either: Either, record: Record) -> Answered:
        record.generations = [either]
        chosen = await either.chosen()
        record.generations = [chosen]
        record.placed()
        if isinstance(chosen, Relay):
            return await self._relays.respond(request, chosen, record)
        return await self._respond(request, job, [chosen], record)

    def _generations(
        self, request: web.Request, job: Job, tenant: intake.Tenant, deadline: float
    ) -> list[Generation]:
        id_ = request[REQUEST_ID]

        def hang_up() -> None:
            if request.transport is not None:
                request.transport.abort()

        wanted = (
            GenerationRequest(id_, tenant, job.model, prompt.token_ids, prompt.sampling, deadline)
            for prompt in job.prompts
        )
        return [Generation(self._upstream, each, hang_up) for each in wanted]

    async def _respond(
        self, request: web.Request, job: Job, generations: list[Generation], record: Record
    ) -> Answered:
        answer = Answer(job, generations, self._preparer.tokenizer(job), record, self._upstream.clock)
        headers = {"X-Warmfleet-Worker": generations[0].placement.worker}
        if not job.stream:
            body = await answer.whole()
            return web.Response(body=body, content_type="application/json", headers=headers), None
        response = Events(headers=_EVENTS | headers)
        await response.prepare(request)
        failure = await answer.stream(response)
        await response.write_eof()
        return response, failure
