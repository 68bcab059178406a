"""What a server gets is what the client sent; what placement needs is read from it."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from warmfleet_proto.errors import BadRequest
from warmfleet_proto.limits import MAX_CHOICES
from warmfleet_router.servers import media
from warmfleet_router.servers.ask import model_of, parse
from warmfleet_router.servers.media import PART_BYTES
from warmfleet_router.servers.text import ids_of, salt_of


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


def test_each_prompt_of_a_list_is_a_sequence() -> None:
    for prompt, count in (("x", 1), ([1, 2], 1), (["x"], 1), (["x", "y"], 2), ([[1, 2], [3]], 2), ([], 1)):
        assert asked(False, prompt=prompt).choices == count
        assert asked(False, prompt=prompt, n=3).choices == 3 * count
    assert asked(False, prompt=["x"] * 100, n=2).choices == MAX_CHOICES
    assert asked(n=2).choices == 2


def test_a_prompt_that_is_scored_is_computed_whatever_is_cached() -> None:
    """As vLLM 0.32 has it: ``echo`` alone scores a chat's prompt, and a completion's with ``logprobs``."""
    scored = [asked(prompt_logprobs=0), asked(echo=True), asked(False, prompt="x", echo=True, logprobs=0)]
    assert all(ask.scores_prompt for ask in scored)
    others = [asked(), asked(logprobs=True), asked(echo=False), asked(False, prompt="x", logprobs=1)]
    others += [asked(False, prompt="x", echo=True), asked(False, prompt="x", echo=True, logprobs=None)]
    assert not any(ask.scores_prompt for ask in others)


@given(body=st.binary() | st.text().map(str.encode))
def test_any_body_is_read_or_refused(body: bytes) -> None:
    model_of(body)
    try:
        parse(body, True)
    except BadRequest:
        return


# ---- text in the place of token ids


def turns(*contents: Any) -> bytes:
    return ids_of(asked(messages=[{"role": "user", "content": c} for c in contents]))


def alike(a: bytes, b: bytes) -> int:
    """Leading bytes."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def test_the_next_turn_begins_as_the_last() -> None:
    first = turns("a" * 500)
    then = turns("a" * 500, "b" * 500)
    assert len(first) % 4 == len(then) % 4 == 0
    assert alike(first, then) >= len(first) - 4 >= 500
    assert ids_of(asked(chat=False, prompt="x"))


def test_a_prompt_may_be_embeddings() -> None:
    assert ids_of(asked(chat=False, prompt_embeds="a" * 80)) != ids_of(
        asked(chat=False, prompt_embeds="b" * 80)
    )
    assert ids_of(asked(chat=False, prompt="x", prompt_embeds="a")) != ids_of(asked(chat=False, prompt="x"))
    with pytest.raises(BadRequest, match="required"):
        asked(chat=False, prompt_embeds=None)


def test_whatever_changes_the_prompt_changes_its_root() -> None:
    kinds: list[Any] = [
        asked(),
        asked(chat=False, prompt="hi"),
        asked(tools=[{"type": "function"}]),
        asked(chat_template_kwargs={"enable_thinking": False}),
        asked(chat_template="{{ messages }}"),
        asked(model="other"),
        asked(documents=[{"text": "x"}]),
        asked(reasoning_effort="high"),
        asked(truncate_prompt_tokens=5),
        asked(mm_processor_kwargs={"num_crops": 4}),
    ]
    salts = [*(salt_of(kind, "") for kind in kinds), salt_of(asked(), "salt")]
    assert len(set(salts)) == len(salts)


def test_what_does_not_change_the_prompt_does_not() -> None:
    assert salt_of(asked(temperature=0.3, seed=7), "") == salt_of(asked(), "")
    assert ids_of(asked(temperature=0.3, seed=7)) == ids_of(asked())


# ---- images and the like

CAT, DOG = ({"type": "image_url", "image_url": {"url": "data:image/png;base64," + x * 9000}} for x in "cd")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (CAT, DOG),
        ({"type": "input_audio", "input_audio": {"data": "x"}}, {"type": "input_audio", "input_audio": {}}),
        ({"image_embeds": "x"}, {"image_embeds": "y"}),
        (["x"], ["y"]),
    ],
)
def test_images_are_told_apart_and_count_for_what_they_are(one: Any, other: Any) -> None:
    look = {"type": "text", "text": "What is it? " * 10}
    assert media.is_in(asked(messages=[{"role": "user", "content": [look, one]}]).known.messages)
    with_one, with_other = turns([look, one, look]), turns([look, other, look])
    assert with_one == turns([look, one, look])
    assert 120 < alike(with_one, with_other) < 200
    assert PART_BYTES < len(with_one) < PART_BYTES + 400
    assert alike(turns([look, one, look], "and now?"), with_one) >= len(with_one) - 4


@pytest.mark.parametrize("content", ["hi", None, [], ["hi"], [{"type": "text", "text": "x", "more": 1}], 5])
def test_text_is_no_image(content: Any) -> None:
    ask = asked(messages=[{"role": "user", "content": content}, 7])
    assert not media.is_in(ask.known.messages)
    assert ids_of(ask).rstrip(b"\0") == b"\x1e".join(map(bytes, ask.known.messages))
