"""A choice's text: cut at stop strings however its tokens arrive, and ended once."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from warmfleet_proto.errors import WorkerLost
from warmfleet_proto.worker_pb2 import Ending, Output, TokenLogprobs
from warmfleet_router.gateway.choices import ChoiceText, prompt_scores
from warmfleet_router.prompt import ids
from warmfleet_router.prompt.tokenizer import Tokenizer

# Every byte is a token: the hardest case for characters and stops alike.
BYTES = cast(Tokenizer, SimpleNamespace(token_bytes=[bytes([i]) for i in range(256)], specials={}))


def output(data: bytes, end: "Ending.Reason | None" = None) -> Output:
    made = Output(token_ids=ids.pack(tuple(data)))
    if end is not None:
        made.ending.CopyFrom(Ending(reason=end))
    return made


@given(st.text(alphabet="abé🌉", max_size=30), st.text(alphabet="abé", min_size=1, max_size=3), st.data())
def test_the_text_does_not_depend_on_the_cuts(text: str, stop: str, data: Any) -> None:
    raw = text.encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=6)))
    choice = ChoiceText(BYTES, (stop,), scored=False)
    got = ""
    for start, end in zip([0, *cuts], [*cuts, len(raw)], strict=True):
        last = end == len(raw) and start == ([0, *cuts])[-1]
        piece, _ = choice.push(output(raw[start:end], Ending.LENGTH if last else None))
        got += piece
    assert got == text.partition(stop)[0]
    assert choice.finish_reason == ("stop" if stop in text else "length")


def test_nothing_is_said_after_the_end() -> None:
    choice = ChoiceText(BYTES, ("b",), scored=True)
    assert choice.push(output(b""))[0] == ""
    text, _ = choice.push(
        Output(token_ids=ids.pack(tuple(b"ab")), logprobs=[TokenLogprobs(), TokenLogprobs()])
    )
    assert (text, choice.finish_reason, choice.tokens) == ("a", "stop", 2)
    assert choice.push(output(b"c", Ending.LENGTH)) == ("", None)
    assert (choice.finish_reason, choice.tokens) == ("stop", 2)


def test_an_unfinished_character_ends_as_a_replacement() -> None:
    choice = ChoiceText(BYTES, (), scored=False)
    assert choice.push(output("é".encode()[:1]))[0] == ""
    assert choice.push(output(b"", Ending.STOP)) == ("\ufffd", None)
    assert choice.finish_reason == "stop"


def test_nothing_predicts_the_first_token_of_a_prompt() -> None:
    top = TokenLogprobs(logprob=-1, top_ids=ids.pack((99,)), top_logprobs=[-0.5])
    first, second = prompt_scores(BYTES, ids.pack(tuple(b"ab")), [top])
    assert (first.token.text, first.token.logprob, first.top) == ("a", None, ())
    assert (second.token.text, second.token.logprob) == ("b", -1)
    assert [(t.text, t.logprob) for t in second.top] == [("c", -0.5)]


SCORED = TokenLogprobs(logprob=-1, top_ids=ids.pack((99,)), top_logprobs=[-0.5])


@pytest.mark.parametrize(
    "malformed",
    [
        Output(token_ids=b"12345", logprobs=[SCORED]),
        Output(token_ids=ids.pack((97,))),
        Output(token_ids=ids.pack((97,)), logprobs=[SCORED, SCORED]),
        Output(token_ids=ids.pack((97,)), logprobs=[TokenLogprobs(top_ids=b"123", top_logprobs=[-1])]),
        Output(token_ids=ids.pack((97,)), logprobs=[TokenLogprobs(top_ids=ids.pack((97,)))]),
        Output(token_ids=ids.pack((97,)), logprobs=[TokenLogprobs(top_logprobs=[-1])]),
    ],
    ids=["half an id", "no scores", "two scores", "half an alternative", "no top scores", "no top ids"],
)
def test_a_malformed_output_is_a_lost_worker(malformed: Output) -> None:
    with pytest.raises(WorkerLost, match="worker answered"):
        ChoiceText(BYTES, (), scored=True).push(malformed)


@pytest.mark.parametrize("count", [0, 2])
def test_prompt_scores_of_another_prompt_are_a_lost_worker(count: int) -> None:
    with pytest.raises(WorkerLost, match=f"1 tokens with {count}"):
        prompt_scores(BYTES, ids.pack(tuple(b"ab")), [SCORED] * count)
