"""Every field of the two OpenAI request bodies that we know, with its type and bounds.

A null counts as absent, as OpenAI treats it. Fields in ``_Ignored`` are accepted and change nothing
here; those in ``UNIMPLEMENTED`` must hold one of the harmless values beside them.
"""

from typing import Annotated, Literal

from msgspec import Meta, Raw, Struct
from warmfleet_proto.limits import MAX_CHOICES, MAX_LOGPROBS, MAX_STOP_CHARS, MAX_STOP_IDS, MAX_STOPS

from warmfleet_router.gateway.messages import MAX_MESSAGES, MAX_TOOLS, NULL, Message, Tool

MAX_MODEL_CHARS = 512
MAX_TOKEN_ID = (1 << 31) - 1
MAX_OWN_STOP_IDS = MAX_STOP_IDS // 2  # the model's own go beside them
MAX_TOKENS = 1 << 31  # more than any context; below it, max_tokens is clipped to the context

TokenId = Annotated[int, Meta(ge=0, le=MAX_TOKEN_ID)]
Count = Annotated[int, Meta(ge=1, le=MAX_TOKENS)]
Alternatives = Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)]
StopText = Annotated[str, Meta(min_length=1, max_length=MAX_STOP_CHARS)]

# Values are compared as JSON text without white space.
UNIMPLEMENTED: dict[str, tuple[bytes, ...]] = {
    "audio": (b"null",),
    "best_of": (b"null",),  # beside n, see schema
    "frequency_penalty": (b"null", b"0", b"0.0"),
    "function_call": (b"null", b'"none"'),
    "functions": (b"null", b"[]"),
    "logit_bias": (b"null", b"{}"),
    "modalities": (b"null", b"[]", b'["text"]'),
    "presence_penalty": (b"null", b"0", b"0.0"),
    "reasoning_effort": (b"null", b'"none"'),
    "repetition_penalty": (b"null", b"1", b"1.0"),
    "response_format": (b"null", b'{"type":"text"}'),
    "suffix": (b"null", b'""'),
    "verbosity": (b"null", b'"medium"'),
    "web_search_options": (b"null",),
}


class StreamOptions(Struct, forbid_unknown_fields=True):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None  # changes nothing here


class _Ignored(Struct, forbid_unknown_fields=True, kw_only=True):
    metadata: Raw = NULL
    parallel_tool_calls: Raw = NULL
    prediction: Raw = NULL
    prompt_cache_key: Raw = NULL
    prompt_cache_retention: Raw = NULL
    safety_identifier: Raw = NULL
    service_tier: Raw = NULL
    store: Raw = NULL
    user: Raw = NULL


class _Unimplemented(_Ignored, kw_only=True):
    frequency_penalty: Raw = NULL
    logit_bias: Raw = NULL
    presence_penalty: Raw = NULL
    repetition_penalty: Raw = NULL


class _Common(_Unimplemented, kw_only=True):
    model: Annotated[str, Meta(min_length=1, max_length=MAX_MODEL_CHARS)]
    max_tokens: Count | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=MAX_TOKEN_ID)] | None = None  # -1 and 0: off, as in vLLM
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    seed: Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)] | None = None
    stop: StopText | Annotated[list[StopText], Meta(max_length=MAX_STOPS)] | None = None
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=MAX_OWN_STOP_IDS)] | None = None
    ignore_eos: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None


class ChatBody(_Common, kw_only=True):
    messages: Annotated[list[Message], Meta(min_length=1, max_length=MAX_MESSAGES)]
    tools: Annotated[list[Tool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Alternatives | None = None
    add_generation_prompt: bool | None = None
    audio: Raw = NULL
    function_call: Raw = NULL
    functions: Raw = NULL
    modalities: Raw = NULL
    reasoning_effort: Raw = NULL
    response_format: Raw = NULL
    verbosity: Raw = NULL
    web_search_options: Raw = NULL


class CompletionBody(_Common, kw_only=True):
    prompt: str | list[str | TokenId | list[TokenId]]
    logprobs: Alternatives | None = None
    echo: bool | None = None
    best_of: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    response_format: Raw = NULL
    suffix: Raw = NULL
