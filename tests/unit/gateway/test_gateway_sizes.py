"""Large bodies: what is legal still passes, and what is not is refused before much is made of it."""

import json
import time
import tracemalloc
from collections.abc import Callable

import pytest
from warmfleet_proto.errors import BadRequest
from warmfleet_proto.limits import PROMPT_BYTES, TOKEN_BYTES
from warmfleet_router.gateway.body import MAX_BRACKETS, MAX_COMMAS, decode
from warmfleet_router.gateway.schema import _CHAT, parse_chat, parse_completion
from warmfleet_router.prompt.ids import pack

LARGE = {  # and what is blamed
    "logit_bias": ({str(i): 1 for i in range(10**6)}, "body"),
    "stop": (["x"] * 10**6, "body"),
    "stop_token_ids": ([1] * 10**6, "stop_token_ids"),
    "prompt": ([*range(10**6), -1], f"prompt[{10**6}]"),
    "surprise": (["x"] * 10**6, "body"),
    "metadata": ([[]] * 10**6, "body"),
    "user": ("[" * 10**6, "body"),
}


@pytest.mark.parametrize("field", LARGE)
def test_a_million_of_anything_is_refused_quickly(field: str) -> None:
    """The slowest, ids, in the time that the standard library takes to read them: 70 ms."""
    value, culprit = LARGE[field]
    body = json.dumps({"model": "m", "prompt": "x", field: value}).encode()

    def refused() -> None:
        with pytest.raises(BadRequest) as caught:
            parse_completion(body)
        assert caught.value.field == culprit

    assert quickest(refused) < max(0.1, 2 * quickest(lambda: json.loads(body)))


def quickest(call: Callable[[], object]) -> float:
    """Of three, in the thread's own time: whatever else goes on can only add to it."""
    taken = []
    for _ in range(3):
        begun = time.thread_time()
        call()
        taken.append(time.thread_time() - begun)
    return min(taken)


def test_as_many_ids_as_a_prompt_may_have_are_packed() -> None:
    most = PROMPT_BYTES // TOKEN_BYTES
    many = [b"7"] * most
    packed = pack([7]) * most
    assert parse_completion(b'{"model":"m","prompt":[' + b",".join(many) + b"]}").prompts == (packed,)
    with pytest.raises(BadRequest, match=f"prompt: more than {most} token ids"):
        parse_completion(b'{"model":"m","prompt":[' + b",".join([*many, b"7"]) + b"]}")
    with pytest.raises(BadRequest, match=f"body: more than {MAX_COMMAS} commas"):
        parse_completion(b'{"model":"m","prompt":[' + b",".join([*many, *many]) + b"]}")


def nested(value: str, count: int) -> str:
    return f"[{','.join([value] * count)}]"


@pytest.mark.parametrize("empty", ["[]", "{}"])
@pytest.mark.parametrize(
    "place",
    [
        '"messages":[{"role":"user","content":"x","annotations":%s}]',
        '"messages":[{"role":"user","content":"x"}],"tools":[{"function":{"name":"f","parameters":{"a":%s}}}]',
        '"messages":[{"role":"user","content":"x"}],"metadata":%s',
    ],
    ids=["annotations", "parameters", "metadata"],
)
def test_brackets_are_counted_before_anything_is_made_of_them(place: str, empty: str) -> None:
    body = f'{{"model":"m",{place % nested(empty, MAX_BRACKETS)}}}'.encode()

    def refused() -> None:
        with pytest.raises(BadRequest, match=f"body: more than {MAX_BRACKETS} opening brackets") as caught:
            parse_chat(body)
        assert caught.value.field == "body"

    assert quickest(refused) < 0.02
    parse_chat(f'{{"model":"m",{place % nested(empty, 1000)}}}'.encode())


def test_brackets_are_counted_in_tool_arguments() -> None:
    """However they are spelt in the body."""
    arguments = f'{{"a":{nested("[]", MAX_BRACKETS)}}}'.replace("[", "\\u005b").replace('"', '\\"')
    call = f'{{"id":"c","function":{{"name":"f","arguments":"{arguments}"}}}}'
    with pytest.raises(BadRequest, match="opening brackets") as caught:
        parse_chat(f'{{"model":"m","messages":[{{"role":"assistant","tool_calls":[{call}]}}]}}'.encode())
    assert caught.value.field == "messages[0].tool_calls[0].function.arguments"


def test_what_is_ignored_is_not_made() -> None:
    """Not one list of the 100,000 is."""
    message = f'{{"role":"user","content":"x","annotations":{nested("[]", 100_000)}}}'
    body = f'{{"model":"m","messages":[{message}]}}'.encode()
    tracemalloc.start()
    try:
        decode(body, _CHAT)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()
