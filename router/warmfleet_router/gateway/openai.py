"""OpenAI response bodies and stream chunks, as bytes.

Pure. A chunk differs from the one before in its text alone: everything else is encoded once a stream.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
from warmfleet_proto.errors import BadRequest, Rejected, WarmfleetError, http_status

from warmfleet_router.gateway.logprobs import chat_logprobs, completion_logprobs
from warmfleet_router.prompt.scores import Score

DONE = b"data: [DONE]\n\n"

_encode = msgspec.json.Encoder().encode


class Usage(NamedTuple):
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


class Choice(NamedTuple):
    """One finished choice; ``scores`` is None unless log-probabilities were asked for."""

    text: str
    finish_reason: str  # stop, length
    scores: Sequence[Score] | None = None


class ChatChunks:
    """Server-sent events of one streamed chat completion."""

    def __init__(self, id: str, created: int, model: str, choices: int, include_usage: bool) -> None:
        self._head = _head(id, "chat.completion.chunk", created, model)
        self._tail = _tail(include_usage)
        self._starts = [b'%b{"index":%d,"delta":{"content":' % (self._head, i) for i in range(choices)]

    def first(self, choice: int) -> bytes:
        """The role, sent before any text of a choice."""
        body = b'{"index":%d,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}'
        return self._head + body % choice + self._tail

    def text(self, choice: int, text: str, scores: Sequence[Score] | None = None) -> bytes:
        logprobs = b"null" if scores is None else _encode(chat_logprobs(scores))
        end = b'},"logprobs":%b,"finish_reason":null}' % logprobs
        return self._starts[choice] + _encode(text) + end + self._tail

    def last(self, choice: int, finish_reason: str) -> bytes:
        reason = _encode(finish_reason)
        body = b'{"index":%d,"delta":{},"logprobs":null,"finish_reason":%b}' % (choice, reason)
        return self._head + body + self._tail

    def usage(self, usage: Usage) -> bytes:
        """The last chunk before DONE when the client asked for usage."""
        return self._head + b'],"usage":%b}\n\n' % _encode(_usage(usage))


class CompletionChunks:
    """Server-sent events of one streamed text completion."""

    def __init__(self, id: str, created: int, model: str, choices: int, include_usage: bool) -> None:
        self._head = _head(id, "text_completion", created, model)
        self._tail = _tail(include_usage)
        self._starts = [b'%b{"index":%d,"text":' % (self._head, i) for i in range(choices)]

    def text(self, choice: int, text: str, scores: Sequence[Score] | None = None, offset: int = 0) -> bytes:
        """``offset``: characters of the choice's tokens before these."""
        logprobs = b"null" if scores is None else _encode(completion_logprobs(scores, offset))
        end = b',"logprobs":%b,"finish_reason":null}' % logprobs
        return self._starts[choice] + _encode(text) + end + self._tail

    def last(self, choice: int, finish_reason: str) -> bytes:
        end = b'"","logprobs":null,"finish_reason":%b}' % _encode(finish_reason)
        return self._starts[choice] + end + self._tail

    def usage(self, usage: Usage) -> bytes:
        return self._head + b'],"usage":%b}\n\n' % _encode(_usage(usage))


def chat_response(id: str, created: int, model: str, choices: Sequence[Choice], usage: Usage) -> bytes:
    shown = [
        {
            "index": index,
            "message": {"role": "assistant", "content": choice.text, "refusal": None},
            "logprobs": None if choice.scores is None else chat_logprobs(choice.scores),
            "finish_reason": choice.finish_reason,
        }
        for index, choice in enumerate(choices)
    ]
    return _response(id, "chat.completion", created, model, shown, usage)


def completion_response(id: str, created: int, model: str, choices: Sequence[Choice], usage: Usage) -> bytes:
    shown = [
        {
            "index": index,
            "text": choice.text,
            "logprobs": None if choice.scores is None else completion_logprobs(choice.scores),
            "finish_reason": choice.finish_reason,
        }
        for index, choice in enumerate(choices)
    ]
    return _response(id, "text_completion", created, model, shown, usage)


def models_response(models: Mapping[str, int]) -> bytes:
    """``models``: served name -> context in tokens (``max_model_len``, as vLLM names it)."""
    return _encode({"object": "list", "data": [_model(*each) for each in models.items()]})


def model_response(name: str, context: int) -> bytes:
    return _encode(_model(name, context))


def _model(name: str, context: int) -> dict[str, Any]:
    """When its weights were made is not known: ``created`` is 0."""
    return {"id": name, "object": "model", "created": 0, "owned_by": "warmfleet", "max_model_len": context}


def error_body(message: str, status: int, field: str | None = None) -> bytes:
    return _encode({"error": _error(message, status, field)})


def error_of(error: WarmfleetError) -> tuple[int, dict[str, str], bytes]:
    """HTTP status, headers and body for one of the four exceptions."""
    status = http_status(error)
    field = error.field if isinstance(error, BadRequest) else None
    headers = {}
    if isinstance(error, Rejected):
        headers["Retry-After"] = str(max(1, round(error.retry_after)))
    return status, headers, error_body(str(error), status, field)


def error_chunk(message: str, status: int) -> bytes:
    """An error after the stream has begun; the stream ends with it."""
    return b"data: " + error_body(message, status) + b"\n\n"


def _head(id: str, kind: str, created: int, model: str) -> bytes:
    fields = _encode({"id": id, "object": kind, "created": created, "model": model})
    return b"data: " + fields[:-1] + b',"choices":['


def _tail(include_usage: bool) -> bytes:
    return b'],"usage":null}\n\n' if include_usage else b"]}\n\n"


def _response(id: str, kind: str, created: int, model: str, choices: list[Any], usage: Usage) -> bytes:
    fields = {"id": id, "object": kind, "created": created, "model": model}
    return _encode({**fields, "choices": choices, "usage": _usage(usage)})


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


_CODES = {401: "invalid_api_key", 404: "not_found", 429: "rate_limit_exceeded", 503: "overloaded"}


def _error(message: str, status: int, field: str | None) -> dict[str, Any]:
    if status == 429:
        kind = "rate_limit_error"
    else:
        kind = "invalid_request_error" if status < 500 else "server_error"
    return {"message": message, "type": kind, "param": field, "code": _CODES.get(status)}
