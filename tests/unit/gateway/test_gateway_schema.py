"""OpenAI bodies: what is accepted, with which meaning, and the field that every mistake is blamed on."""

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletionMessage
from warmfleet_proto.errors import BadRequest
from warmfleet_router.gateway.fields import UNIMPLEMENTED
from warmfleet_router.gateway.schema import (
    ChatRequest,
    CompletionRequest,
    SamplingOptions,
    completion_budget,
    parse_chat,
    parse_completion,
)
from warmfleet_router.prompt.ids import pack

USER = {"role": "user", "content": "x"}


def chat(**fields: Any) -> ChatRequest:
    return parse_chat(json.dumps({"model": "m", "messages": [USER], **fields}).encode())


def completion(**fields: Any) -> CompletionRequest:
    return parse_completion(json.dumps({"model": "m", "prompt": "x", **fields}).encode())


def blamed(parse: Any, **fields: Any) -> str | None:
    """The field that a bad request names; the message begins with it."""
    with pytest.raises(BadRequest) as caught:
        parse(**fields)
    assert caught.value.field is not None
    assert str(caught.value).startswith(f"{caught.value.field}: ")
    assert len(str(caught.value)) < 600
    return caught.value.field


# ---- What is accepted


def test_defaults() -> None:
    expected = SamplingOptions(1.0, 1.0, 0, 0.0, None, None, 1, (), (), False, None, None)
    assert chat() == ChatRequest("m", [USER], None, True, expected, False, False)
    assert completion().options.max_tokens == 16
    assert completion().prompts == ("x",)


def test_null_is_absent() -> None:
    optional = """
        temperature top_p top_k min_p n seed stop stop_token_ids ignore_eos stream stream_options max_tokens
        max_completion_tokens logprobs top_logprobs tools tool_choice user metadata store logit_bias audio
        add_generation_prompt presence_penalty response_format modalities functions service_tier"""
    assert chat(**dict.fromkeys(optional.split())) == chat()
    assert completion(suffix=None, echo=None, best_of=None, logprobs=None, max_tokens=None) == completion()


def test_everything_that_counts_arrives() -> None:
    request = chat(
        temperature=0, top_p=0.5, top_k=-1, min_p=0.1, seed=-1, n=3, stop=["a", "b"], stop_token_ids=[7],
        ignore_eos=True, logprobs=True, top_logprobs=4, max_tokens=5, max_completion_tokens=9, stream=True,
        stream_options={"include_usage": True}, add_generation_prompt=False,
    )  # fmt: skip
    assert request.options == SamplingOptions(
        temperature=0.0,
        top_p=0.5,
        top_k=0,
        min_p=0.1,
        seed=2**64 - 1,
        max_tokens=9,
        choices=3,
        stops=("a", "b"),
        stop_token_ids=(7,),
        ignore_eos=True,
        logprobs=4,
    )
    assert (request.stream, request.include_usage, request.add_generation_prompt) == (True, True, False)


def test_logprobs() -> None:
    assert chat(logprobs=True).options.logprobs == 0
    assert chat(logprobs=False).options.logprobs is None
    echoed = completion(logprobs=3, echo=True)
    assert (echoed.options.logprobs, echoed.options.prompt_logprobs, echoed.echo) == (3, 3, True)
    assert completion(logprobs=3).options.prompt_logprobs is None


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("", ("",)),
        (["a", "b"], ("a", "b")),
        ([1, 2], (pack([1, 2]),)),
        ([[1], [2, 3]], (pack([1]), pack([2, 3]))),
    ],
)
def test_prompt_forms(prompt: Any, prompts: tuple[str | bytes, ...]) -> None:
    assert completion(prompt=prompt).prompts == prompts


def test_fields_that_change_nothing_are_accepted() -> None:
    idle = {
        "user": "u", "metadata": {"a": "b"}, "store": True, "service_tier": "auto", "safety_identifier": "s",
        "prompt_cache_key": "k", "parallel_tool_calls": False, "prediction": {"type": "content"},
        "stream_options": {"include_usage": False, "include_obfuscation": True}, "stream": True,
        "presence_penalty": 0, "frequency_penalty": 0.0, "response_format": {"type": "text"},
        "logit_bias": {}, "modalities": ["text"], "functions": [], "tool_choice": "auto",
    }  # fmt: skip
    assert chat(**idle) == chat(stream=True)


def test_content_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert chat(messages=[{"role": "user", "content": parts}]).messages == [
        {"role": "user", "content": "a\nb"}
    ]


def test_an_answer_can_be_sent_back_as_the_client_library_gives_it() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    answer = ChatCompletionMessage.model_validate(
        {"role": "assistant", "content": None, "tool_calls": [call]}
    )
    result = {"role": "tool", "content": "2", "tool_call_id": "c1"}
    assert chat(messages=[USER, answer.model_dump(), result]).messages[1:] == [
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{**call, "function": {"name": "f", "arguments": {"x": 1}}}],
        },
        result,
    ]


def test_tools() -> None:
    tool = {
        "type": "function",
        "function": {"name": "f", "description": "d", "parameters": {"type": "object"}},
    }
    assert chat(tools=[tool]).tools == [tool]
    assert chat(tools=[tool], tool_choice="none").tools is None
    assert chat(tools=[]).tools is None


def test_budget_is_clipped_to_the_context() -> None:
    assert completion_budget(SamplingOptions(max_tokens=2**31), 60, 100, "prompt") == 40
    assert completion_budget(SamplingOptions(), 60, 100, "prompt") == 40
    assert completion_budget(SamplingOptions(max_tokens=7), 60, 100, "prompt") == 7
    assert completion_budget(SamplingOptions(), 99, 100, "prompt") == 1
    with pytest.raises(BadRequest, match="messages: 100 tokens leave no room in a context of 100"):
        completion_budget(SamplingOptions(), 100, 100, "messages")


# ---- What is refused, and the field that it is blamed on

HUGE = [0, -1, 10**12, 2**63, 10**30, 1.5, True, "1", [1], 1e300]


@pytest.mark.parametrize("value", HUGE)
@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens", "n"])
def test_counts(field: str, value: Any) -> None:
    assert blamed(chat, **{field: value}) == field


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -1),
        ("temperature", 2.1),
        ("temperature", True),
        ("temperature", 10**400),
        ("top_p", 0),
        ("top_p", 1.1),
        ("top_k", -2),
        ("top_k", 2**31),
        ("min_p", -0.1),
        ("n", 129),
        ("n", 10**9),
        ("seed", 2**63),
        ("seed", 1.5),
        ("stop", ""),
        ("stop", "x" * 1025),
        ("stop", ["x"] * 17),
        ("stop", ["x"] * 10_000),
        ("stop", {}),
        ("stop_token_ids", [1] * 513),
        ("stream", 1),
        ("model", ""),
        ("model", 3),
        ("model", "m" * 600),
        ("messages", []),
        ("messages", "hello"),
        ("messages", [USER] * 10_001),
        ("top_logprobs", 21),
        ("top_logprobs", 1),
        ("stream_options", {"include_usage": True}),
        ("tool_choice", "required"),
        ("tool_choice", {"type": "function", "function": {"name": "f"}}),
        ("tools", [{"type": "function", "function": {"name": "f"}}] * 129),
        ("unheard_of", 1),
        ("response_format", {"type": "json_object"}),
        ("modalities", ["text", "audio"]),
        ("functions", [{"name": "f"}]),
    ],
    ids=lambda value: str(value)[:20],
)
def test_chat_fields(field: str, value: Any) -> None:
    assert blamed(chat, **{field: value}) == field


@pytest.mark.parametrize("field", UNIMPLEMENTED)
def test_what_the_engine_does_not_implement_is_named(field: str) -> None:
    parse = completion if field in ("suffix", "best_of") else chat
    assert blamed(parse, **{field: 2}) == field


@pytest.mark.parametrize(
    ("field", "parse", "value"),
    [
        ("stop[1]", chat, {"stop": ["a", 1]}),
        ("stop[1]", chat, {"stop": ["a", ""]}),
        ("stop_token_ids[0]", chat, {"stop_token_ids": [-1]}),
        ("stream_options.x", chat, {"stream": True, "stream_options": {"x": 1}}),
        ("messages[0].role", chat, {"messages": [{"role": "robot", "content": "x"}]}),
        ("messages[0].role", chat, {"messages": [{"content": "x"}]}),
        ("messages[0].content", chat, {"messages": [{"role": "user"}]}),
        ("messages[1].content", chat, {"messages": [USER, {"role": "tool", "content": None}]}),
        ("messages[0].content", chat, {"messages": [{"role": "user", "content": 3}]}),
        ("messages[0].colour", chat, {"messages": [{**USER, "colour": 1}]}),
        ("messages[0].audio", chat, {"messages": [{**USER, "audio": {"id": "a"}}]}),
        ("messages[0].tool_calls", chat, {"messages": [{**USER, "tool_calls": [
            {"id": "a", "function": {"name": "f", "arguments": "{}"}}]}]}),
        ("messages[0].content[1].type", chat, {"messages": [{"role": "user", "content": [
            {"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "data:"}}]}]}),
        ("messages[0].content[0].text", chat, {"messages": [
            {"role": "user", "content": [{"type": "text"}]}]}),
        ("tools[0].function.name", chat, {"tools": [{"function": {"name": ""}}]}),
        ("tools[0].type", chat, {"tools": [{"type": "code_interpreter"}]}),
        ("prompt", completion, {"prompt": []}),
        ("prompt", completion, {"prompt": None}),
        ("prompt", completion, {"prompt": {"a": 1}}),
        ("prompt", completion, {"prompt": ["x"] * 3, "n": 50}),
        ("prompt[0]", completion, {"prompt": [-1]}),
        ("prompt[1]", completion, {"prompt": [1, 2**31]}),
        ("prompt[1]", completion, {"prompt": [1, 2**63]}),
        ("prompt[1]", completion, {"prompt": [1, True]}),
        ("prompt[1]", completion, {"prompt": [1, 1.5]}),
        ("prompt[1]", completion, {"prompt": [1, "a"]}),
        ("prompt[1]", completion, {"prompt": [[1], 2]}),
        ("prompt[0][0]", completion, {"prompt": [[[1]]]}),
        ("prompt[1]", completion, {"prompt": [[1], []]}),
        ("logprobs", completion, {"logprobs": 21}),
        ("logprobs", completion, {"logprobs": True}),
        ("best_of", completion, {"best_of": 3, "n": 2}),
        ("echo", completion, {"echo": "yes"}),
        ("messages", completion, {"messages": [USER]}),
    ],
)  # fmt: skip
def test_paths(field: str, parse: Any, value: dict[str, Any]) -> None:
    assert blamed(parse, **value) == field


@pytest.mark.parametrize(
    "arguments", ["", "{", "[]", "NaN", '{"a":1,"a":2}', '{"a":' * 5000, '{"a":' + "[" * 70]
)
def test_tool_arguments_are_json_of_an_object(arguments: str) -> None:
    call = {"id": "a", "function": {"name": "f", "arguments": arguments}}
    message = {"role": "assistant", "tool_calls": [call]}
    if arguments == "":  # what models write for a function without parameters
        assert chat(messages=[message]).messages[0]["tool_calls"][0]["function"]["arguments"] == {}
    else:
        assert blamed(chat, messages=[message]) == "messages[0].tool_calls[0].function.arguments"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b'{"model":"m","model":"m","messages":[{"role":"user","content":"x"}]}', "model"),
        (b'{"model":"m","messages":[{"role":"user","content":"x","r\\u006fle":"user"}]}', "role"),
        (b'{"model":"m","messages":[{"role":"user","content":"x"}],"metadata":{"a":1,"a":1}}', "a"),
        (b'{"model":"m","messages":[{"role":"user","content":"\\ud800"}]}', "body"),
        (b'{"model":"m","messages":[{"role":"user","content":"\xff"}]}', "body"),
        (b'{"model":"m","temperature":NaN,"messages":[{"role":"user","content":"x"}]}', "body"),
        (b'{"model":"m","temperature":1e400,"messages":[{"role":"user","content":"x"}]}', "temperature"),
        (b'{"model":"m","max_tokens":' + b"1" * 4301 + b"}", "max_tokens"),
        (b'{"model":"m","metadata":' + b"[" * 65 + b"]" * 65 + b',"messages":[{"role":"user","content":""}]}',
         "body"),
    ],
    ids=lambda value: str(value)[:60],
)  # fmt: skip
def test_json_that_is_no_json(body: bytes, field: str) -> None:
    assert blamed(lambda: parse_chat(body)) == field


def test_missing_fields() -> None:
    assert blamed(lambda: parse_chat(b'{"model":"m"}')) == "messages"
    assert blamed(lambda: parse_chat(b'{"messages":[]}')) in ("messages", "model")
    assert blamed(lambda: parse_completion(b'{"model":"m"}')) == "prompt"


# ---- Fuzz

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=5), v, max_size=3),
    max_leaves=5,
)
names = st.sampled_from(
    ["messages", "prompt", "tools", "stop", "n", "seed", "stream_options", "max_tokens", "role", "content"]
)
inner = st.dictionaries(names, json_values, max_size=3)
bodies = st.dictionaries(names, json_values | st.lists(inner, max_size=2), max_size=4)


@settings(max_examples=200, deadline=None)
@given(bodies)
def test_any_body_is_a_request_or_a_bad_one(body: dict[str, Any]) -> None:
    for parse in (parse_chat, parse_completion):
        with contextlib.suppress(BadRequest):
            parse(json.dumps({"model": "m", **body}).encode())
