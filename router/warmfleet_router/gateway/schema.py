"""Bodies of /v1/chat/completions and /v1/completions, parsed and checked.

Pure. Everything wrong raises BadRequest with ``field`` set to the path of the offending value.
Token ids are checked against the vocabulary where the model is known (PromptEncoder.tokens).
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import msgspec
from warmfleet_proto.errors import BadRequest
from warmfleet_proto.limits import MAX_CHOICES, PROMPT_BYTES, TOKEN_BYTES

from warmfleet_router.gateway import body as _body
from warmfleet_router.gateway.fields import UNIMPLEMENTED, ChatBody, CompletionBody, StreamOptions
from warmfleet_router.gateway.messages import for_template, tools_for_template
from warmfleet_router.prompt import ids

COMPLETION_TOKENS = 16  # what OpenAI's /v1/completions gives when max_tokens is absent

_CHAT = msgspec.json.Decoder(ChatBody)
_COMPLETION = msgspec.json.Decoder(CompletionBody)


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """How to complete; defaults are OpenAI's."""

    temperature: float = 1.0  # 0: greedy
    top_p: float = 1.0
    top_k: int = 0  # 0: off
    min_p: float = 0.0
    seed: int | None = None  # 64 bits, unsigned; None: the gateway draws one
    max_tokens: int | None = None  # None: up to the context
    choices: int = 1
    stops: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None  # alternatives a completion token; None: no logprobs
    prompt_logprobs: int | None = None  # alternatives a prompt token


@dataclass(frozen=True, slots=True)
class ChatRequest:
    model: str
    messages: list[dict[str, Any]]  # as chat templates read them
    tools: list[dict[str, Any]] | None
    add_generation_prompt: bool
    options: SamplingOptions
    stream: bool
    include_usage: bool


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    model: str
    prompts: tuple[str | bytes, ...]  # text, or packed token ids
    echo: bool
    options: SamplingOptions
    stream: bool
    include_usage: bool


def parse_chat(body: bytes) -> ChatRequest:
    """Raises BadRequest."""
    fields = _body.decode(body, _CHAT)
    _refuse_unimplemented(fields)
    _body.check_structure(body)
    if fields.top_logprobs is not None and not fields.logprobs:
        raise BadRequest("top_logprobs: needs logprobs", "top_logprobs")
    logprobs = (fields.top_logprobs or 0) if fields.logprobs else None
    tools = fields.tools if fields.tool_choice != "none" else None
    return ChatRequest(
        model=fields.model,
        messages=for_template(fields.messages),
        tools=tools_for_template(tools) if tools else None,
        add_generation_prompt=fields.add_generation_prompt is not False,
        options=_options(fields, fields.max_completion_tokens or fields.max_tokens, logprobs),
        stream=bool(fields.stream),
        include_usage=_include_usage(fields.stream, fields.stream_options),
    )


def parse_completion(body: bytes) -> CompletionRequest:
    """Raises BadRequest."""
    fields = _body.decode(body, _COMPLETION)
    _refuse_unimplemented(fields)
    prompts = _prompts(fields.prompt)
    fields.prompt = ""  # a million ids take 40 MB as a list
    _body.check_structure(body)
    choices = fields.n or 1
    if fields.best_of not in (None, choices):
        raise BadRequest("best_of: not implemented; leave it out or give it the value of n", "best_of")
    if len(prompts) * choices > MAX_CHOICES:
        raise BadRequest(f"prompt: at most {MAX_CHOICES} prompts times n", "prompt")
    options = _options(fields, fields.max_tokens or COMPLETION_TOKENS, fields.logprobs, bool(fields.echo))
    return CompletionRequest(
        model=fields.model,
        prompts=prompts,
        echo=bool(fields.echo),
        options=options,
        stream=bool(fields.stream),
        include_usage=_include_usage(fields.stream, fields.stream_options),
    )


def completion_budget(options: SamplingOptions, prompt_tokens: int, max_context: int, field: str) -> int:
    """Completion tokens for a prompt: what was asked for, clipped to the context.

    Raises BadRequest, naming ``field`` (messages or prompt), when the prompt leaves no room.
    """
    room = max_context - prompt_tokens
    if room < 1:
        text = f"{field}: {prompt_tokens} tokens leave no room in a context of {max_context} tokens"
        raise BadRequest(text, field)
    return min(room, options.max_tokens or room)


def _options(
    fields: ChatBody | CompletionBody, max_tokens: int | None, logprobs: int | None, echo: bool = False
) -> SamplingOptions:
    stop = fields.stop or []
    return SamplingOptions(
        temperature=1.0 if fields.temperature is None else fields.temperature,
        top_p=fields.top_p or 1.0,
        top_k=max(0, fields.top_k or 0),
        min_p=fields.min_p or 0.0,
        seed=None if fields.seed is None else fields.seed % (1 << 64),
        max_tokens=max_tokens,
        choices=fields.n or 1,
        stops=(stop,) if isinstance(stop, str) else tuple(stop),
        stop_token_ids=tuple(fields.stop_token_ids or ()),
        ignore_eos=bool(fields.ignore_eos),
        logprobs=logprobs,
        prompt_logprobs=logprobs if echo else None,
    )


def _include_usage(stream: bool | None, options: StreamOptions | None) -> bool:
    if options is not None and not stream:
        raise BadRequest("stream_options: needs stream", "stream_options")
    return options is not None and bool(options.include_usage)


def _refuse_unimplemented(fields: ChatBody | CompletionBody) -> None:
    for field, harmless in UNIMPLEMENTED.items():
        value = getattr(fields, field, None)
        if isinstance(value, msgspec.Raw) and not _is_harmless(bytes(value), harmless):
            raise BadRequest(f"{field}: not implemented by this engine", field)


def _is_harmless(value: bytes, harmless: tuple[bytes, ...]) -> bool:
    return value in harmless or (len(value) < 100 and b"".join(value.split()) in harmless)


def _prompts(prompt: str | list[Any]) -> tuple[str | bytes, ...]:
    if isinstance(prompt, str):
        return (prompt,)
    kinds = set(map(type, prompt))
    if not kinds:
        raise BadRequest("prompt: empty", "prompt")
    if len(kinds) > 1:
        at = next(i for i, (a, b) in enumerate(pairwise(prompt)) if type(a) is not type(b)) + 1
        raise BadRequest(f"prompt[{at}]: texts, token ids and lists of them cannot be mixed", f"prompt[{at}]")
    kind = kinds.pop()
    if kind is str:
        return tuple(prompt)
    if kind is int:
        return (_pack(prompt, "prompt"),)
    return tuple(_pack(part, f"prompt[{i}]") for i, part in enumerate(prompt))


def _pack(token_ids: list[int], field: str) -> bytes:
    if not token_ids:
        raise BadRequest(f"{field}: empty", field)
    if len(token_ids) * TOKEN_BYTES > PROMPT_BYTES:
        raise BadRequest(f"{field}: more than {PROMPT_BYTES // TOKEN_BYTES} token ids", field)
    return ids.pack(token_ids)
