"""Token ids as the server will have them: by the same tokenizer here, or by asking it."""

import asyncio
import itertools
import logging
from array import array
from collections.abc import Mapping, Sequence
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

PAGE = "/tokenize"
ASK_S = 5.0
REST_S = 10.0  # of one that did not answer: by then it counts as lost, or has been busy
TOKEN_TEXT = 16  # bytes of a token's text, more than prompts have on average: a longer one is refused anyway
_MOST = PROMPT_BYTES // TOKEN_BYTES

_TokenIds = Annotated[list[Annotated[int, Meta(ge=0, le=0xFFFF_FFFF)]], Meta(min_length=1, max_length=_MOST)]


class _Told(Struct):
    tokens: _TokenIds


_messages = msgspec.json.Decoder(list[Message])
_tools = msgspec.json.Decoder(list[Tool])
_prompt = msgspec.json.Decoder(str | _TokenIds)
_only_prompt = msgspec.json.Decoder(Annotated[list[str | _TokenIds], Meta(min_length=1, max_length=1)])
_told = msgspec.json.Decoder(_Told)
_any = msgspec.json.Decoder(dict[str, Raw])
_NONSENSE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_MORE = ("truncate_prompt_tokens", EMBEDS)  # of a prompt than its ids, or less
_TAKEN_OUT = (
    b"x-anthropic-billing-header"  # of system prompts, by vLLM since 0.32: it is another with each request
)
_THOUGHTS = b'"reasoning_content"'
_COMPLETION = ("model", "add_special_tokens")
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
        self._told_at: dict[str, float] = {}  # when one told last, on the loop's clock
        self._resting: dict[str, float] = {}  # those that did not answer, until when
        self._turn = itertools.count()  # whose it is to be asked: each of them reads one prompt at a time

    async def of(self, ask: Ask, salt: bytes, servers: list[Server], context: int = 0) -> bytes:
        """Packed ids; empty where they cannot be had. Raises Rejected when too much waits.

        ``context``: tokens that a prompt may have; 0: not known.
        """
        encoder, vllm = self._encoders.get(ask.model), bool(servers) and servers[0].engine == "vllm"
        if encoder is None and servers:  # an adapter's prompts are encoded as those of its model
            encoder = self._encoders.get(servers[0].model)
        if ask.whole or any(ask.fields.get(name, NULL) != NULL for name in _MORE):
            return b""
        try:
            if not ask.chat and not isinstance(prompt := _prompt_of(ask.known), str):
                return array("I", prompt).tobytes()
        except _NONSENSE:
            return b""
        if encoder is not None and not _is_foreign(ask.known):
            try:
                return await self._encoded(ask, encoder, salt, vllm)
            except (BadRequest, *_NONSENSE):
                pass  # the server may well know what to do
        if media.is_in(ask.known.messages or ()):
            return b""
        able = [server for server in servers if _can_tell(server, ask)]
        try:
            question = msgspec.json.encode(_question(ask)) if able else b""
        except _NONSENSE:  # the server's to refuse
            return b""
        if context and len(question) > context * TOKEN_TEXT:
            return b""
        return await self._asked(question, able)

    async def _encoded(self, ask: Ask, encoder: PromptEncoder, salt: bytes, vllm: bool) -> bytes:
        known = ask.known
        if not ask.chat:
            text = _prompt_of(known)
            assert isinstance(text, str)
            return await encoder.text(text, salt)
        messages = for_template(_messages.decode(b"[" + b",".join(map(bytes, known.messages or ())) + b"]"))
        tools = tools_for_template(_tools.decode(known.tools)) if known.tools != NULL else None
        if vllm:
            _like_vllm(messages, tools or ())
        return await encoder.chat(
            messages,
            tools or None,
            known.add_generation_prompt is not False,
            salt,
            variables=_variables(known),
        )

    async def _asked(self, question: bytes, able: Sequence[Server]) -> bytes:
        """One of those that can tell. Who told nobody for as long as this one waited has a rest."""
        began = _now()
        self._resting = {url: until for url, until in self._resting.items() if until > began}
        awake = [server for server in able if server.url not in self._resting]
        if not awake:
            return b""
        server = awake[next(self._turn) % len(awake)]
        try:
            async with asyncio.timeout(ASK_S):
                told = await self._told(question, server)
        except (TimeoutError, WorkerLost):
            if self._told_at.get(server.url, began) <= began:
                self._resting[server.url] = _now() + REST_S
            return b""
        except _NONSENSE:
            return b""
        self._told_at[server.url] = _now()
        return array("I", told).tobytes()

    async def _told(self, question: bytes, server: Server) -> Sequence[int]:
        """Nothing where it does not tell. Raises WorkerLost, and DecodeError for what makes no sense."""
        reply = await self._pool.post(server.url, PAGE, question, {"Content-Type": "application/json"})
        try:
            if reply.status == 200:
                return _told.decode(await reply.whole(16 * _MOST)).tokens
            self._note(server, reply.status)
            return ()
        finally:
            reply.release(over=False)

    def _note(self, server: Server, status: int) -> None:
        """Once a server: what its events tell is of no use for prompts whose ids are not known."""
        if server.url not in self._untold and server.model not in self._encoders:
            self._untold.add(server.url)
            why = f"it answers {status} to {PAGE}; if that goes on, set tokenizers.{server.model}"
            log.event(_log, "token ids not told", level=logging.WARNING, address=server.url, why=why)


def _can_tell(server: Server, ask: Ask) -> bool:
    plain = ask.known.documents == ask.known.reasoning_effort == NULL
    return server.tokenises and not server.silent and (plain or server.takes_variables)


def _now() -> float:
    return asyncio.get_running_loop().time()


def _prompt_of(known: Known) -> str | list[int]:
    """Of a text completion; a list of one prompt is that one. Raises DecodeError for several."""
    prompt: str | list[int]
    try:
        prompt = _prompt.decode(known.prompt)
    except msgspec.ValidationError:
        (prompt,) = _only_prompt.decode(known.prompt)
    return prompt


def _question(ask: Ask) -> dict[str, Any]:
    """What the page is asked. It takes those fields of a chat that are variables of its template, but not by
    their own names."""
    if not ask.chat:
        return {"prompt": _prompt_of(ask.known), **_only(ask.fields, _COMPLETION)}
    variables = _variables(ask.known)
    messages = [_with_thoughts(message) for message in ask.known.messages or ()]
    question: dict[str, Any] = _only(ask.fields, _CHAT) | {"messages": messages}
    return question | ({"chat_template_kwargs": variables} if variables else {})


def _with_thoughts(message: Raw) -> Raw | dict[str, Raw]:
    """With those of a model's by both of their names: the page of vLLM 0.32 knows one, its chats both."""
    if _THOUGHTS not in bytes(message):
        return message
    fields = _any.decode(message)
    return {"reasoning": fields.get("reasoning_content", NULL), **fields}


def _like_vllm(messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]]) -> None:
    """Makes them what vLLM gives to templates, of which some print calls and functions as they are."""
    for message in messages:
        for call in message.get("tool_calls", ()):
            called = call["function"]
            call["function"] = {"arguments": called["arguments"], "name": called["name"]}
            call["type"] = call.pop("type")
    for tool in tools:
        tool["function"] = {"name": "", "description": None, "parameters": None} | tool["function"]


def _is_foreign(known: Known) -> bool:
    """Our template and tokenizer would make another prompt of it than the server does."""
    first = bytes(known.messages[0]) if known.messages else b""
    return (
        known.chat_template != NULL
        or known.documents != NULL
        or bool(known.continue_final_message)
        or known.add_special_tokens is not None
        or "documents" in (known.chat_template_kwargs or ())
        or _TAKEN_OUT in first
    )


def _variables(known: Known) -> dict[str, Any]:
    """Variables of the chat template, as vLLM sets them: a reasoning effort asks for thinking, or for
    none."""
    given = {name: value for name, value in (known.chat_template_kwargs or {}).items() if value is not None}
    if known.documents != NULL:
        given["documents"] = known.documents
    if known.reasoning_effort == NULL:
        return given
    effort = msgspec.json.decode(known.reasoning_effort)
    return {"enable_thinking": effort != "none"} | given | {"reasoning_effort": effort}


def _only(fields: dict[str, Raw], names: tuple[str, ...]) -> dict[str, Raw]:
    return {name: fields[name] for name in names if name in fields}
