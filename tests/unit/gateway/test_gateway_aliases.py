"""Names that stand for models."""

import json
from collections import Counter
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from warmfleet_proto.errors import BadRequest
from warmfleet_proto.router_pb2 import ListWorkersResponse, WorkerView
from warmfleet_proto.settings import ConfigError, load, to_toml
from warmfleet_router.config import GatewayConfig, check
from warmfleet_router.gateway.aliases import Aliases, chosen

CANARY = {"chat": {"a": 0.9, "b": 0.1}, "plain": "a"}


def fleet(**states: str) -> ListWorkersResponse:
    return ListWorkersResponse(workers=[WorkerView(model=m, state=s) for m, s in states.items()])


def made(**states: str) -> Aliases:
    aliases = Aliases(CANARY)
    aliases.update(fleet(**(states or {"a": "healthy", "b": "healthy"})))
    return aliases


def body(*texts: str, model: str = "chat", **more: Any) -> bytes:
    """A talk: the user, the model, the user, ..."""
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    messages = [{"role": "system", "content": "be short"}, *turns]
    return json.dumps({"temperature": 0.5, "model": model, "messages": messages, **more}).encode()


def model_of(aliases: Aliases, asked: bytes) -> str:
    model: str = json.loads(aliases.resolved(asked))["model"]
    return model


@given(st.lists(st.text(), min_size=1, max_size=5), st.lists(st.text(), max_size=4))
def test_a_conversation_keeps_its_model(texts: list[str], more: list[str]) -> None:
    aliases = made()
    assert model_of(aliases, body(*texts)) == model_of(aliases, body(*texts, *more))


def test_models_get_their_shares_of_conversations_and_of_prompts() -> None:
    aliases = made()
    chats = Counter(model_of(aliases, body(f"talk {n}")) for n in range(2000))
    assert 140 < chats["b"] < 260
    texts = [json.dumps({"model": "chat", "prompt": f"text {n}"}).encode() for n in range(2000)]
    assert 140 < Counter(model_of(aliases, text) for text in texts)["b"] < 260


def test_without_one_model_only_its_own_conversations_move() -> None:
    talks = [f"talk {n}".encode() for n in range(500)]
    three, two = {"a": 3.0, "b": 1.0, "c": 1.0}, {"a": 3.0, "b": 1.0}
    moved = [talk for talk in talks if chosen(three, talk) != chosen(two, talk)]
    assert moved
    assert all(chosen(three, talk) == "c" for talk in moved)


def test_a_model_without_a_worker_passes_its_conversations_on() -> None:
    talks = [body(f"talk {n}") for n in range(100)]
    assert {model_of(made(a="healthy", b="lost"), talk) for talk in talks} == {"a"}
    assert {model_of(made(a="draining", b="stuck"), talk) for talk in talks} == {"b"}
    nobody = made(a="lost", b="joining")
    assert {model_of(nobody, talk) for talk in talks} == {"a", "b"}, "the router says why it cannot be had"


def test_an_adapter_of_a_model_gets_its_share_too() -> None:
    aliases = Aliases(CANARY)
    worker = WorkerView(model="a", models=["b"], adapters=["b"], state="healthy")
    aliases.update(ListWorkersResponse(workers=[worker]))
    assert {model_of(aliases, body(f"talk {n}")) for n in range(100)} == {"a", "b"}


def test_nothing_else_is_touched() -> None:
    aliases = made()
    asked = body("x", model="other")
    assert aliases.resolved(asked) is asked
    assert aliases.resolved(b"no json") == b"no json"
    raw = b'{"model":"plain","seed": 1e400,  "x":[1.0, 2] ,"prompt":"\\u00e9"}'
    assert aliases.resolved(raw) == b'{"model":"a","seed":1e400,"x":[1.0, 2],"prompt":"\\u00e9"}'


@pytest.mark.parametrize(
    "wrong",
    [
        b'{"model":"b","model":"chat","prompt":""}',
        b'{"model":"chat","prompt":' + b"[" * 70 + b"]" * 70 + b"}",
    ],
)
def test_what_hides_behind_an_alias_is_refused_as_elsewhere(wrong: bytes) -> None:
    with pytest.raises(BadRequest):
        made().resolved(wrong)


def test_messages_that_are_none_are_left_to_others() -> None:
    assert model_of(made(), b'{"model":"chat","messages":7}') in ("a", "b")
    assert model_of(made(), b'{"model":"chat","messages":[7, {"role": 7}]}') in ("a", "b")


def test_aliases_are_listed_with_the_context_that_all_their_models_have() -> None:
    assert made().models({"a": 64, "b": 32, "c": 1}) == {"chat": 32, "plain": 64}
    assert made().models({"b": 32}) == {"chat": 32}


@pytest.mark.parametrize(
    ("aliases", "named"),
    [
        ({"chat": {}}, "aliases.chat: expected a model"),
        ({"chat": {"a": 0.0}}, "aliases.chat.a: expected a weight above 0, got 0.0"),
        ({"chat": {"a": 1.0, "b": -1}}, "aliases.chat.b"),
        ({"chat": {"a": float("inf")}}, "aliases.chat.a"),
        ({"chat": "next", "next": "a"}, "aliases.chat: 'next' is an alias itself"),
        ({"": "a"}, "aliases: expected names"),
        ({"chat": ""}, "aliases.chat: expected models"),
    ],
)
def test_aliases_that_are_wrong_are_named(aliases: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError) as raised:
        check(msgspec.convert({"aliases": aliases}, GatewayConfig))
    assert named in str(raised.value)


def test_a_models_own_name_may_have_a_canary(tmp_path: Any) -> None:
    file = tmp_path / "gateway.toml"
    config = load(GatewayConfig, None, ["aliases.a={a=.95, b=.05}".replace("=.", "=0."), "aliases.chat=a2"])
    check(config)
    file.write_text(to_toml(config))
    assert load(GatewayConfig, str(file)).aliases == {"a": {"a": 0.95, "b": 0.05}, "chat": "a2"}
