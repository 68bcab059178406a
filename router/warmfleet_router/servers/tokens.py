"""Token ids as the server will have them: by the same tokenizer here, or by asking it."""

import asyncio
import logging
from array import array
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Raw, Struct
from warmfleet_proto import log
from warmfleet_proto.errors import BadRequest, WorkerLost
from warmfleet_proto.limits import PROMPT_BYTES, TOKEN_BYTES

from warmfleet_router.gateway.messages import NULL, Message, Tool, for_template, tools_for_template
from warmfleet_router.prompt.encoder import PromptEncoder
from warmfleet_router.servers import media
from warmfleet_router.servers.ask import EMBEDS, Ask, Known
from warmfleet_router.servers.catalogue import Server
from warmfleet_router.servers.pool import ServerPool

_log = logging.getLogger(__name__)

ASK_S = 5.0
REST_S = 10.0  # of one that did not answer: by then it counts as lost, or has been busy
_MOST = PROMPT_BYTES // TOKEN_BYTES

_TokenIds = Annotated[list[Annotated[int, Meta(ge=0, le=0xFFFF_FFFF)]], Meta(min_length=1, max_length=_MOST)]


class _Told(Struct):
    tokens: _TokenIds | None = None  # of /tokenize
    token_ids: _TokenIds | None = None  # of /render


_messages = msgspec.json.Decoder(list[Message])
_tools = msgspec.json.Decoder(list[Tool])
_prompt = msgspec.json.Decoder(str | _TokenIds)
_told = msgspec.json.Decoder(_Told)
_MORE = ("truncate_prompt_tokens", EMBEDS)  # of a prompt than its ids, or less
_CHAT = (
    "model",
    "messages",
    "tools",
    "add_generation_prompt",
    "continue_final_message",
    "add_special_tokens",
    "chat_template",
    "chat_template_kwargs",
)


class Tokens:
    """``encoders`` by model; for other models the servers are asked, where they can be."""

    def __init__(self, encoders: Mapping[str, PromptEncoder], pool: ServerPool) -> None:
        self._encoders = encoders
        self._pool = pool
        self._untold: set[str] = set()  # servers that did not tell, of whom that is known
        self._resting: dict[str, float] = {}  # those that did not answer, until when, on the loop's clock

    async def of(self, ask: Ask, salt: bytes, servers: list[Server]) -> bytes:
        """Packed ids; empty where they cannot be had. Raises Rejected when too much waits."""
        encoder = self._encoders.get(ask.model)
        if encoder is None and servers:  # an adapter's prompts are encoded as those of its model
            encoder = self._encoders.get(servers[0].model)
        if any(ask.fields.get(name, NULL) != NULL for name in _MORE):
            return b""
        try:
            if not ask.chat and not isinstance(prompt := _prompt.decode(ask.known.prompt), str):
                return array("I", prompt).tobytes()
            if encoder is not None and not _is_foreign(ask.known):
                return await self._encoded(ask, encoder, salt)
        except (BadRequest, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return b""  # images and the like: the server may well know what to do
        able = [server for server in servers if server.tokenises and not server.silent]
        if not able or media.is_in(ask.known.messages or ()):
            return b""
        now = asyncio.get_running_loop().time()
        self._resting = {url: until for url, until in self._resting.items() if until > now}
        server = next((server for server in able if server.url not in self._resting), None)
        return b"" if server is None else await self._asked(ask, server)

    async def _encoded(self, ask: Ask, encoder: PromptEncoder, salt: bytes) -> bytes:
        known = ask.known
        if not ask.chat:
            text = _prompt.decode(known.prompt)
            assert isinstance(text, str)
            return await encoder.text(text, salt)
        messages = for_template(_messages.decode(b"[" + b",".join(map(bytes, known.messages or ())) + b"]"))
        tools = tools_for_template(_tools.decode(known.tools)) if known.tools != NULL else None
        return await encoder.chat(
            messages,
            tools or None,
            known.add_generation_prompt is not False,
            salt,
            variables=_variables(known),
        )

    async def _asked(self, ask: Ask, server: Server) -> bytes:
        """Asks for token ids by a page that knows all fields that matter: by the older one if that does."""
        if not ask.chat:
            path, fields = "/tokenize", _only(ask.fields, ("model", "prompt", "add_special_tokens"))
        elif ask.known.documents == NULL and ask.known.reasoning_effort == NULL:
            path, fields = "/tokenize", _only(ask.fields, _CHAT)
        elif server.renders:
            path, fields = "/v1/chat/completions/render", ask.fields
        else:
            return b""
        headers = {"Content-Type": "application/json"}
        try:
            async with asyncio.timeout(ASK_S):
                reply = await self._pool.post(server.url, path, msgspec.json.encode(fields), headers)
                try:
                    if reply.status != 200:
                        self._note(server, path, reply.status)
                        return b""
                    told = _told.decode(await reply.whole(16 * _MOST))
                finally:
                    reply.release(over=False)
        except (TimeoutError, WorkerLost):
            self._resting[server.url] = asyncio.get_running_loop().time() + REST_S
            return b""
        except (msgspec.DecodeError, UnicodeDecodeError):
            return b""
        return array("I", told.tokens or told.token_ids or ()).tobytes()

    def _note(self, server: Server, path: str, status: int) -> None:
        """Once a server: what its events tell is of no use for prompts whose ids are not known."""
        if server.url not in self._untold:
            self._untold.add(server.url)
            why = f"it answers {status} to {path}; if that goes on, set tokenizers.{server.model}"
            log.event(_log, "token ids not told", level=logging.WARNING, address=server.url, why=why)


def _is_foreign(known: Known) -> bool:
    """Our template and tokenizer would make another prompt of it than the server does."""
    return (
        known.chat_template != NULL
        or known.documents != NULL
        or bool(known.continue_final_message)
        or known.add_special_tokens is not None
    )


def _variables(known: Known) -> dict[str, Any]:
    """Variables of the chat template, as vLLM sets them: a reasoning effort asks for thinking, or for
    none."""
    given = known.chat_template_kwargs or {}
    if known.reasoning_effort == NULL:
        return given
    effort = msgspec.json.decode(known.reasoning_effort)
    return {"enable_thinking": effort != "none"} | given | {"reasoning_effort": effort}


def _only(fields: dict[str, Raw], names: tuple[str, ...]) -> dict[str, Raw]:
    return {name: fields[name] for name in names if name in fields}
