"""What a request would ask of the router, without asking: for explanations of what has not happened."""

from contextlib import suppress
from typing import Annotated

import msgspec
from aiohttp import web
from msgspec import UNSET, Meta, Raw, UnsetType
from warmfleet_proto.errors import BadRequest
from warmfleet_proto.limits import MAX_CHOICES, MAX_ID_CHARS
from warmfleet_proto.router_pb2 import RouteRequest

from warmfleet_router.gateway import body as _body
from warmfleet_router.gateway import intake, schema
from warmfleet_router.gateway.aliases import Aliases
from warmfleet_router.gateway.catalogue import Catalogue
from warmfleet_router.gateway.generation import GenerationRequest
from warmfleet_router.gateway.job import Job, Preparer
from warmfleet_router.gateway.limits import Limits
from warmfleet_router.gateway.relaying import Relays
from warmfleet_router.servers.ask import model_of

GATEWAY = "dry run"
_Tokens = Annotated[int, Meta(ge=0, lt=1 << 32)]


class Keys(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A prompt as a decision log tells it: 8-byte keys of its full blocks, packed, in base64."""

    model: Annotated[str, Meta(max_length=MAX_ID_CHARS)]
    keys: bytes
    prompt_tokens: _Tokens
    max_tokens: _Tokens = 0
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] = 1


class _Kind(msgspec.Struct):
    keys: Raw | UnsetType = UNSET
    messages: Raw | UnsetType = UNSET


_KEYS = msgspec.json.Decoder(Keys)
_KIND = msgspec.json.Decoder(_Kind)


class DryRun:
    def __init__(
        self,
        preparer: Preparer,
        tenants: intake.Tenants,
        limits: Limits,
        aliases: Aliases,
        catalogue: Catalogue,
        relays: Relays,
    ) -> None:
        self._aliases = aliases
        self._catalogue = catalogue
        self._relays = relays
        self._preparer = preparer
        self._tenants = tenants
        self._limits = limits

    async def asks(self, request: web.Request) -> list[RouteRequest]:
        """What a body would ask of the router, one for each prompt: a body as /v1/chat/completions or
        /v1/completions take it, or Keys.

        ``?tenant=NAME`` hashes it as that tenant's. Raises BadRequest and Rejected.
        """
        tenant = self._tenants.named(request.query.get("tenant"))
        text = self._aliases.resolved(await intake.read_body(request, self._limits.body_bytes))
        kind = _body.decode(text, _KIND)
        if kind.keys is not UNSET:
            return [_of_keys(_body.decode(text, _KEYS), tenant)]
        chat = kind.messages is not UNSET
        if self._relays.serves(text):
            return [await self._relayed(text, chat, tenant)]
        self._catalogue.check(model_of(text), self._relays.models(), self._aliases)
        return _of_job(await self._job(text, chat, tenant), tenant)

    async def _job(self, body: bytes, chat: bool, tenant: intake.Tenant) -> Job:
        prepare = self._preparer
        if chat:
            return await prepare.chat(await prepare.parsed(schema.parse_chat, body), tenant.salt)
        return await prepare.completion(await prepare.parsed(schema.parse_completion, body), tenant.salt)

    async def _relayed(self, body: bytes, chat: bool, tenant: intake.Tenant) -> RouteRequest:
        """The same for a model that servers have. As in ``Api``, our own workers are considered as well if
        they can do what is asked."""
        path = "/v1/chat/completions" if chat else "/v1/completions"
        if self._catalogue.ready and self._relays.mixes(body):
            with suppress(BadRequest):
                job = await self._job(body, chat, tenant)
                if len(job.prompts) == 1:
                    theirs = await self._relays.supposed(body, tenant, path, job.prompts[0].token_ids)
                    return _of_job(job, tenant._replace(salt=theirs.salt))[0]
        return await self._relays.supposed(body, tenant, path)


def _of_keys(keys: Keys, tenant: intake.Tenant) -> RouteRequest:
    if not keys.prompt_tokens:
        raise BadRequest("prompt_tokens: must be at least 1", "prompt_tokens")
    return RouteRequest(
        gateway_id=GATEWAY,
        model=keys.model,
        tenant=tenant.name,
        keys=keys.keys,
        prompt_tokens=keys.prompt_tokens,
        max_tokens=keys.max_tokens,
        choices=keys.n,
    )


def _of_job(job: Job, tenant: intake.Tenant) -> list[RouteRequest]:
    return [
        GenerationRequest("", tenant, job.model, prompt.token_ids, prompt.sampling, 0.0).route(GATEWAY)
        for prompt in job.prompts
    ]
