"""What a server gets is what the client sent; what placement needs is read from it."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from warmfleet_proto.errors import BadRequest
from warmfleet_router.servers.ask import model_of, parse
from warmfleet_router.servers.text import BLOCK_TOKENS, CHUNK_BYTES, keys_of


def asked(chat: bool = True, **fields: Any) -> Any:
    given = {"model": "m", "messages": [{"role": "user", "content": "hi"}]} if chat else {"model": "m"}
    return parse(json.dumps(given | fields).encode(), chat)


def test_unknown_fields_go_on_untouched() -> None:
    messages = rb'[{"role":"user","content":[1e2,{"x":"\u0041"}]}]'
    body = b'{"model":"m","messages":' + messages + b',"guided":{"a": 1.50},"n":2}'
    assert parse(body, True).outgoing("", True) == body


def test_usage_is_asked_for_where_the_client_did_not() -> None:
    plain = asked(stream=True, stream_options={"continuous_usage_stats": False})
    sent = json.loads(plain.outgoing("", True))
    assert sent["stream_options"] == {"continuous_usage_stats": False, "include_usage": True}
    assert not plain.wants_usage
    wanted = asked(stream=True, stream_options={"include_usage": True})
    assert wanted.wants_usage
    assert "stream_options" not in json.loads(asked().outgoing("", True))


def test_tenants_share_no_salt() -> None:
    ask = asked(cache_salt="mine")
    salts = {ask.salt(b"a"), ask.salt(b"b"), asked().salt(b"a"), asked().salt(b"b"), ask.salt(b"")}
    assert len(salts) == 5
    assert ask.salt(b"") == "mine"
    assert json.loads(ask.outgoing(ask.salt(b"a"), True))["cache_salt"] == ask.salt(b"a")
    assert json.loads(ask.outgoing(ask.salt(b"a"), False))["cache_salt"] == "mine"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"messages": []}, "messages"),
        ({"model": 5}, "model"),
        ({"model": "x" * 513}, "model"),
        ({"n": 10**9}, "n"),
        ({"stream": "yes"}, "stream"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"chat_template_kwargs": []}, "chat_template_kwargs"),
    ],
)
def test_what_placement_needs_is_checked(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(BadRequest) as caught:
        asked(**fields)
    assert caught.value.field == field


@given(body=st.binary() | st.text().map(str.encode))
def test_any_body_is_read_or_refused(body: bytes) -> None:
    model_of(body)
    try:
        parse(body, True)
    except BadRequest:
        return


# ---- text keys


def turns(*contents: str, **fields: Any) -> bytes:
    keys, tokens = keys_of(asked(messages=[{"role": "user", "content": c} for c in contents], **fields), "")
    assert len(keys) // 8 <= tokens
    return keys


def test_the_next_turn_has_the_keys_of_the_last() -> None:
    first = turns("a" * 500)
    then = turns("a" * 500, "b" * 500)
    assert len(first) // 8 >= 500 // CHUNK_BYTES
    assert then.startswith(first)
    assert (
        keys_of(asked(messages=[{"role": "user", "content": "a" * 640}]), "")[1]
        >= 640 // CHUNK_BYTES * BLOCK_TOKENS
    )


def test_whatever_changes_the_prompt_changes_its_keys() -> None:
    text = "a" * 500
    kinds = [
        turns(text),
        turns(text, tools=[{"type": "function"}]),
        turns(text, chat_template_kwargs={"enable_thinking": False}),
        turns(text, chat_template="{{ messages }}"),
        turns(text, model="other"),
        turns(text, documents=[{"text": "x"}]),
        turns(text, reasoning_effort="high"),
        keys_of(asked(messages=[{"role": "user", "content": text}]), "salt")[0],
    ]
    assert len({keys[:8] for keys in kinds}) == len(kinds)


def test_what_does_not_change_the_prompt_does_not() -> None:
    assert turns("a" * 500, temperature=0.3, seed=7) == turns("a" * 500)
