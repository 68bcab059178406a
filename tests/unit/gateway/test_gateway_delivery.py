"""Positions of an attempt: each once and in order, one ending, whatever a worker repeats."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from warmfleet_proto.errors import WorkerLost
from warmfleet_proto.worker_pb2 import Ending, Output, Started, TokenLogprobs
from warmfleet_router.backends.delivery import Delivery


def pack(*ids: int) -> bytes:
    return b"".join(i.to_bytes(4, "little") for i in ids)


def unpack(packed: bytes) -> list[int]:
    return [int.from_bytes(packed[i : i + 4], "little") for i in range(0, len(packed), 4)]


def piece(choice: int, tokens: list[int], start: int, end: int) -> Output:
    """The output that carries positions start..end-1, with the ending if it reaches the last token."""
    made = Output(choice=choice, position=start, token_ids=pack(*tokens[start:end]))
    made.logprobs.extend(TokenLogprobs(logprob=-float(t)) for t in tokens[start:end])
    if start == 0:
        made.started.CopyFrom(Started(cached_tokens=3))
        made.prompt_logprobs.append(TokenLogprobs(logprob=-1))
    if end == len(tokens):
        made.ending.CopyFrom(Ending(reason=Ending.STOP))
    return made


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[list[int]], list[Output]]:
    """Choices' tokens, and a stream of them in which a reattachment may repeat any stretch already sent."""
    token = st.integers(0, 2**32 - 1)
    texts = draw(st.lists(st.lists(token, min_size=1, max_size=12), min_size=1, max_size=3))
    sent = [0] * len(texts)
    stream: list[Output] = []
    while any(done < len(text) for done, text in zip(sent, texts, strict=True)):
        choice = draw(st.sampled_from([c for c, text in enumerate(texts) if sent[c] < len(text)]))
        start = draw(st.integers(0, sent[choice]))
        sent[choice] = draw(st.integers(sent[choice] + 1, len(texts[choice])))
        stream.append(piece(choice, texts[choice], start, sent[choice]))
        stream += draw(st.lists(st.sampled_from(stream), max_size=2))
    return texts, stream


@given(histories())
def test_every_position_once_and_one_ending(history: tuple[list[list[int]], list[Output]]) -> None:
    texts, stream = history
    delivery = Delivery(len(texts))
    got: list[list[int]] = [[] for _ in texts]
    endings = [0] * len(texts)
    started = prompts = 0
    for output in stream:
        fresh = delivery.accept(output)
        if fresh is None:
            continue
        assert endings[fresh.choice] == 0
        assert fresh.position == len(got[fresh.choice])
        assert [-p.logprob for p in fresh.logprobs] == [pytest.approx(t) for t in unpack(fresh.token_ids)]
        got[fresh.choice] += unpack(fresh.token_ids)
        endings[fresh.choice] += fresh.HasField("ending")
        started += fresh.HasField("started")
        prompts += len(fresh.prompt_logprobs)
    assert got == texts
    assert endings == [1] * len(texts)
    assert delivery.done
    assert started == prompts == 1
    assert delivery.next_positions == [len(t) for t in texts]


def test_what_cannot_follow_is_refused() -> None:
    delivery = Delivery(1)
    delivery.accept(Output(position=0, token_ids=pack(7, 8)))
    with pytest.raises(WorkerLost, match="position 3"):
        delivery.accept(Output(position=3, token_ids=pack(9)))
    with pytest.raises(WorkerLost, match="position 0"):
        delivery.accept(Output(position=0, token_ids=pack(7), ending=Ending(reason=Ending.STOP)))
    with pytest.raises(WorkerLost, match="choice 1 of 1"):
        delivery.accept(Output(choice=1, token_ids=pack(1)))


def test_an_ending_without_tokens_is_delivered_once() -> None:
    delivery = Delivery(1)
    end = Output(started=Started(cached_tokens=1), ending=Ending(reason=Ending.LENGTH))
    assert delivery.accept(end) is end
    assert delivery.accept(end) is None
    assert delivery.done
