"""A client's request to a server that is not ours: what placement needs of it, and what is sent on.

Every field goes on byte for byte, known here or not; what the server makes of it is the server's
business. Usage is asked for, a tenant's salt is added, and both are told apart from what the client
itself wanted; SGLang is told an adapter's name in a field of its own.
"""

import hashlib
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Raw, Struct
from warmfleet_proto.errors import BadRequest
from warmfleet_proto.limits import MAX_CHOICES

from warmfleet_router.gateway import body as _body
from warmfleet_router.gateway.messages import NULL

MAX_MODEL_CHARS = 512
MAX_TOKENS = 1 << 31
EMBEDS = "prompt_embeds"  # of vLLM: beside a prompt, or in its place
WHOLE = ("/v1/embeddings", "/v1/rerank", "/v1/score", "/v1/classify")  # paths of prompts that nothing follows

_Any = msgspec.json.Decoder(dict[str, Raw])
_prompts = msgspec.json.Decoder(list[Raw])


class StreamOptions(Struct):
    include_usage: bool | None = None


class Known(Struct):
    """The fields that change where a request should go."""

    model: Annotated[str, Meta(min_length=1, max_length=MAX_MODEL_CHARS)]
    messages: list[Raw] | None = None
    prompt: Raw = NULL
    tools: Raw = NULL
    documents: Raw = NULL
    chat_template: Raw = NULL
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    add_special_tokens: bool | None = None
    reasoning_effort: Raw = NULL
    cache_salt: str | None = None
    max_tokens: Annotated[int, Meta(ge=0, le=MAX_TOKENS)] | None = None
    max_completion_tokens: Annotated[int, Meta(ge=0, le=MAX_TOKENS)] | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    prompt_logprobs: int | None = None
    echo: Any = None
    logprobs: Any = None


class _Named(Struct):
    model: str = ""


_known = msgspec.json.Decoder(Known)
_named = msgspec.json.Decoder(_Named)


class Ask:
    """``fields`` are the client's own, in its order. ``whole``: it was sent to one of WHOLE."""

    def __init__(self, fields: dict[str, Raw], known: Known, chat: bool, whole: bool) -> None:
        self.fields = fields
        self.known = known
        self.chat = chat
        self.whole = whole
        self._prompts = 1 if chat else _count(bytes(known.prompt))

    @property
    def model(self) -> str:
        return self.known.model

    @property
    def stream(self) -> bool:
        return bool(self.known.stream) and not self.whole

    @property
    def choices(self) -> int:
        """Sequences that a server makes of it: of each prompt as many as are wanted."""
        return min(self._prompts * (self.known.n or 1), MAX_CHOICES)

    @property
    def max_tokens(self) -> int:
        """Tokens of the answer, as far as the request says; 0: it does not."""
        if self.whole:
            return 1
        return self.known.max_completion_tokens or self.known.max_tokens or 0

    @property
    def scores_prompt(self) -> bool:
        """Log-probabilities of the prompt are wanted. Engines compute all of it for them, whatever is cached;
        of a chat that is echoed vLLM gives some unasked."""
        known = self.known
        echoes = bool(known.echo) and (self.chat or known.logprobs is not None)
        return echoes or known.prompt_logprobs is not None

    @property
    def wants_usage(self) -> bool:
        options = self.known.stream_options
        return options is not None and bool(options.include_usage)

    def salt(self, tenant: bytes) -> str:
        """The cache salt as the server gets it: tenants share nothing, whatever salts they choose."""
        own = self.known.cache_salt or ""
        if not tenant:
            return own
        return hashlib.sha256(
            b"warmfleet cache salt v1" + len(tenant).to_bytes(2) + tenant + own.encode()
        ).hexdigest()

    def outgoing(self, salt: str, knows_salts: bool, adapter: str = "") -> bytes:
        """The body for the server; ``adapter`` where its model's name does not say that."""
        fields: dict[str, Any] = dict(self.fields)
        if self.stream and not self.wants_usage:
            fields["stream_options"] = self._options() | {"include_usage": True}
        if salt and knows_salts:
            fields["cache_salt"] = salt
        return msgspec.json.encode(fields | _adapted(adapter))

    def salted(self, salt: str, adapter: str = "") -> bytes:
        """The client's body with these, where they are given, and nothing else touched."""
        salted = {"cache_salt": salt} if salt else {}
        return msgspec.json.encode(dict(self.fields) | salted | _adapted(adapter))

    def _options(self) -> dict[str, Any]:
        options = self.fields.get("stream_options")
        if options is None or options == NULL:
            return {}
        return dict(msgspec.json.decode(options, type=dict[str, Raw]))


def _count(prompt: bytes) -> int:
    """Prompts of a text completion: one may be a list too, of token ids."""
    if prompt[:1] != b"[" or prompt[1:].lstrip()[:1] not in (b'"', b"["):
        return 1
    return len(_prompts.decode(prompt))


def _adapted(adapter: str) -> dict[str, str]:
    return {"lora_path": adapter} if adapter else {}


def model_of(body: bytes) -> str:
    """The model that a body names; empty when that cannot be told."""
    try:
        return _named.decode(body).model
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""


def parse(body: bytes, chat: bool, whole: bool = False) -> Ask:
    """Raises BadRequest."""
    fields = _body.decode(body, _Any)
    known = _body.decode(body, _known)
    _body.check_structure(body)
    if chat and not known.messages:
        raise BadRequest("messages: required", "messages")
    if not chat and not whole and known.prompt == fields.get(EMBEDS, NULL) == NULL:
        raise BadRequest("prompt: required", "prompt")
    return Ask(fields, known, chat, whole)
