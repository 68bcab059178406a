"""Answers as the official client reads them."""

import json
from typing import Any

import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from warmfleet_proto.errors import BadRequest, Corrupt, Rejected, WorkerLost
from warmfleet_router.gateway.openai import (
    ChatChunks,
    Choice,
    CompletionChunks,
    Usage,
    chat_response,
    completion_response,
    error_chunk,
    error_of,
    models_response,
)
from warmfleet_router.prompt.scores import Score, Scored

NASTY = 'a"b\\c\n\u2028\x00 日👩\ufffd</script>'
USAGE = Usage(prompt_tokens=10, completion_tokens=4, cached_tokens=8)
SCORES = [
    Score(
        Scored("é", "é".encode(), -0.5), (Scored("é", "é".encode(), -0.5), Scored("\ufffd", b"\xf0", -3.0))
    ),
    Score(Scored("bc", b"bc", float("-inf"))),
]


def event(data: bytes) -> dict[str, Any]:
    assert data.startswith(b"data: ")
    assert data.endswith(b"\n\n")
    assert b"\n" not in data[:-2]
    return json.loads(data[6:])


def chat_chunk(data: bytes) -> ChatCompletionChunk:
    return ChatCompletionChunk.model_validate(event(data), strict=True)


@pytest.mark.parametrize("include_usage", [False, True])
def test_chat_chunks(include_usage: bool) -> None:
    chunks = ChatChunks("chatcmpl-1", 123, NASTY, 2, include_usage)
    first, text, last = (
        chat_chunk(d) for d in (chunks.first(1), chunks.text(1, NASTY), chunks.last(1, "stop"))
    )
    for chunk in (first, text, last):
        assert (chunk.id, chunk.created, chunk.model) == ("chatcmpl-1", 123, NASTY)
        assert chunk.object == "chat.completion.chunk"
        assert chunk.choices[0].index == 1
    assert (first.choices[0].delta.role, first.choices[0].delta.content) == ("assistant", "")
    assert (text.choices[0].delta.content, text.choices[0].finish_reason) == (NASTY, None)
    assert (last.choices[0].delta.content, last.choices[0].finish_reason) == (None, "stop")
    assert ("usage" in event(chunks.text(0, "x"))) == include_usage  # null until the last chunk


def test_usage_chunk() -> None:
    for chunks in (ChatChunks("i", 1, "m", 1, True), CompletionChunks("i", 1, "m", 1, True)):
        chunk = event(chunks.usage(USAGE))
        assert chunk["choices"] == []
        assert chunk["usage"] == {
            "prompt_tokens": 10,
            "completion_tokens": 4,
            "total_tokens": 14,
            "prompt_tokens_details": {"cached_tokens": 8},
        }


def test_chat_logprobs() -> None:
    chunk = chat_chunk(ChatChunks("i", 1, "m", 1, False).text(0, "ébc", SCORES))
    assert chunk.choices[0].logprobs is not None
    first, second = chunk.choices[0].logprobs.content or []
    assert (first.token, first.bytes, first.logprob) == ("é", [0xC3, 0xA9], -0.5)
    assert [(t.token, t.bytes, t.logprob) for t in first.top_logprobs][1] == ("\ufffd", [0xF0], -3.0)
    assert (second.logprob, second.top_logprobs) == (-9999.0, [])


def test_completion_chunks() -> None:
    chunks = CompletionChunks("cmpl-1", 123, "m", 2, False)
    text, last, scored = (
        event(data)
        for data in (chunks.text(1, NASTY), chunks.last(0, "length"), chunks.text(0, "ébc", SCORES, 7))
    )
    assert {key: text[key] for key in text if key != "choices"} == {
        "id": "cmpl-1", "object": "text_completion", "created": 123, "model": "m"
    }  # fmt: skip
    assert text["choices"] == [{"index": 1, "text": NASTY, "logprobs": None, "finish_reason": None}]
    assert last["choices"] == [{"index": 0, "text": "", "logprobs": None, "finish_reason": "length"}]
    assert scored["choices"][0]["logprobs"] == {
        "tokens": ["é", "bc"],
        "token_logprobs": [-0.5, -9999.0],
        "top_logprobs": [{"é": -0.5, "\ufffd": -3.0}, {}],
        "text_offset": [7, 8],
    }


def test_first_prompt_token_has_no_logprob() -> None:
    score = Score(Scored("a", b"a", None))
    answer = json.loads(completion_response("i", 1, "m", [Choice("a", "length", [score])], USAGE))
    logprobs = answer["choices"][0]["logprobs"]
    assert (logprobs["token_logprobs"], logprobs["top_logprobs"]) == ([None], [None])


def test_whole_answers() -> None:
    choices = [Choice(NASTY, "stop"), Choice("ébc", "length", SCORES)]
    chat = ChatCompletion.model_validate_json(chat_response("i", 1, "m", choices, USAGE), strict=True)
    assert [(c.index, c.message.content, c.finish_reason) for c in chat.choices] == [
        (0, NASTY, "stop"),
        (1, "ébc", "length"),
    ]
    assert chat.choices[0].logprobs is None
    assert chat.choices[1].logprobs is not None
    assert chat.usage is not None
    assert chat.usage.prompt_tokens_details is not None
    assert chat.usage.prompt_tokens_details.cached_tokens == 8
    text = Completion.model_validate_json(completion_response("i", 1, "m", choices, USAGE), strict=True)
    assert [(c.index, c.text, c.finish_reason) for c in text.choices] == [
        (0, NASTY, "stop"),
        (1, "ébc", "length"),
    ]


def test_models() -> None:
    listed = json.loads(models_response({"a": 8192}))
    assert (listed["object"], listed["data"][0]["id"], listed["data"][0]["max_model_len"]) == (
        "list",
        "a",
        8192,
    )


@pytest.mark.parametrize(
    ("error", "status", "kind", "param", "code"),
    [
        (BadRequest("n: too many", "n"), 400, "invalid_request_error", "n", None),
        (BadRequest("no such model", "model", 404), 404, "invalid_request_error", "model", "not_found"),
        (BadRequest("who?", "key", 401), 401, "invalid_request_error", "key", "invalid_api_key"),
        (Rejected("full", 2.4), 503, "server_error", None, "overloaded"),
        (Rejected("your share", 0.1, 429), 429, "rate_limit_error", None, "rate_limit_exceeded"),
        (WorkerLost("gone"), 502, "server_error", None, None),
        (Corrupt("bits"), 500, "server_error", None, None),
    ],
)  # fmt: skip
def test_errors(error: Any, status: int, kind: str, param: str | None, code: str | None) -> None:
    given, headers, body = error_of(error)
    assert given == status
    assert json.loads(body) == {"error": {"message": str(error), "type": kind, "param": param, "code": code}}
    assert headers == (
        {"Retry-After": {2.4: "2", 0.1: "1"}[error.retry_after]} if status in (429, 503) else {}
    )


def test_error_in_a_stream() -> None:
    assert event(error_chunk(NASTY, 502))["error"]["message"] == NASTY
