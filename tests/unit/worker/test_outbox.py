"""A Serve stream's outbox: what waits together travels together, and nothing is lost or told twice."""

from collections.abc import Iterator
from random import Random

import pytest
from warmfleet_proto.limits import TOKEN_BYTES
from warmfleet_proto.worker_pb2 import Ending, Output, ServeResponse, Started, TokenLogprobs
from warmfleet_worker import outbox as outbox_module
from warmfleet_worker.outbox import Outbox
from warmfleet_worker.wire import pack


def output(handle: int, position: int, *token_ids: int, choice: int = 0, **more: object) -> Output:
    scores = [TokenLogprobs(logprob=-float(token)) for token in token_ids]
    packed = pack(token_ids)
    return Output(
        handle=handle,
        choice=choice,
        position=position,
        token_ids=packed,
        logprobs=scores,
        **more,  # type: ignore[arg-type]
    )


async def drained(outbox: Outbox) -> list[ServeResponse]:
    outbox.close()
    responses = []
    while (response := await outbox.get()) is not None:
        responses.append(response)
    return responses


async def test_steps_that_wait_together_are_one_message_with_one_output_a_choice() -> None:
    outbox = Outbox()
    outbox.put([output(7, 0, 10, started=Started(cached_tokens=32)), output(8, 4, 20)])
    outbox.put([output(7, 1, 11), output(7, 0, 30, choice=1)])
    outbox.put([output(7, 2, 12, ending=Ending(reason=Ending.LENGTH))])
    (response,) = await drained(outbox)
    first, other, choice = response.outputs
    assert (first.handle, first.position, first.token_ids) == (7, 0, pack([10, 11, 12]))
    assert [each.logprob for each in first.logprobs] == [-10, -11, -12]
    assert first.started.cached_tokens == 32
    assert first.ending.reason == Ending.LENGTH
    assert (other.handle, other.position, other.token_ids) == (8, 4, pack([20]))
    assert not other.HasField("ending")
    assert (choice.choice, choice.token_ids) == (1, pack([30]))


async def test_what_was_read_is_not_joined_again() -> None:
    outbox = Outbox()
    outbox.put([output(7, 0, 10)])
    first = await outbox.get()
    outbox.put([output(7, 1, 11)])
    second = await outbox.get()
    assert first is not None
    assert second is not None
    assert [each.token_ids for each in (*first.outputs, *second.outputs)] == [pack([10]), pack([11])]


def steps(random: Random, choices: list[tuple[int, int]]) -> Iterator[list[Output]]:
    positions = dict.fromkeys(choices, 0)
    for _ in range(60):
        outputs = []
        for handle, choice in random.sample(choices, random.randint(1, len(choices))):
            position = positions[handle, choice]
            token_ids = range(position, position + random.randint(1, 3))
            positions[handle, choice] += len(token_ids)
            outputs.append(output(handle, position, *token_ids, choice=choice))
        yield outputs


@pytest.mark.parametrize("seed", range(20))
async def test_every_choice_gets_its_tokens_in_order(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    random = Random(seed)
    monkeypatch.setattr(outbox_module, "MESSAGE_BYTES", 200)
    monkeypatch.setattr(outbox_module, "BACKLOG_BYTES", 1 << 20)
    monkeypatch.setattr(outbox_module, "_JOINED_BYTES", 5 * TOKEN_BYTES)
    outbox, responses = Outbox(), []
    for outputs in steps(random, [(1, 0), (1, 1), (2, 0)]):
        outbox.put(outputs)
        if random.random() < 0.3 and (response := await outbox.get()):
            responses.append(response)
    responses += await drained(outbox)
    seen: dict[tuple[int, int], int] = {}
    for response in responses:
        assert response.ByteSize() <= 200
        for each in response.outputs:
            position = seen.get((each.handle, each.choice), 0)
            count = len(each.token_ids) // TOKEN_BYTES
            assert each.position == position
            assert each.token_ids == pack(range(position, position + count))
            assert len(each.logprobs) == count
            seen[each.handle, each.choice] = position + count
    assert len(seen) == 3


async def test_a_prompts_scores_are_never_made_larger_and_a_backlog_breaks_the_stream() -> None:
    outbox = Outbox()
    outbox.put([output(7, 0, 10, prompt_logprobs=[TokenLogprobs()])])
    outbox.put([output(7, 1, 11)])
    response = await outbox.get()
    assert response is not None
    assert [len(each.token_ids) for each in response.outputs] == [TOKEN_BYTES, TOKEN_BYTES]
    outbox.put([Output(handle=1, choice=n, token_ids=bytes(1 << 20)) for n in range(9)])
    assert outbox.broken.is_set()
    assert "behind" in outbox.why
    assert await outbox.get() is None
