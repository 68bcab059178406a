"""Whatever a gateway has seen of a request, a transcript tells it the rest and nothing twice."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from warmfleet_proto.worker_pb2 import Output as WireOutput
from warmfleet_worker.engine.base import Logprobs
from warmfleet_worker.sequence import Ending, Output, Reason, Started
from warmfleet_worker.transcript import Transcript

from tests.unit.worker.driver import Driver

REQUEST = Driver().request([1, 2, 3])


def outputs(lengths: list[int], ended: bool) -> list[Output]:
    """One token an output, choices in turn; choice 0's first carries what comes once."""
    made = []
    for position in range(max(lengths)):
        for choice, length in enumerate(lengths):
            if position < length:
                first = position == 0 and choice == 0
                token = choice * 100 + position
                made.append(
                    Output(
                        REQUEST,
                        choice,
                        position,
                        (token,),
                        (Logprobs(-token, (token,), (-token,)),),
                        (Logprobs(-1.0),) if first else (),
                        Started(2, Counter(), 0.5, 0.25) if first else None,
                        Ending(Reason.LENGTH) if ended and position == length - 1 else None,
                    )
                )
    return made


def tell(seen: list[tuple[bytes, list[float], bool]], message: WireOutput) -> None:
    tokens, scores, _ = seen[message.choice]
    assert message.position == len(tokens) // 4
    assert len(message.logprobs) == len(message.token_ids) // 4
    seen[message.choice] = (
        tokens + message.token_ids,
        scores + [score.logprob for score in message.logprobs],
        message.HasField("ending"),
    )


@given(st.lists(st.integers(1, 5), min_size=1, max_size=3), st.booleans(), st.data())
def test_cut_anywhere_and_repeated(lengths: list[int], ended: bool, data: st.DataObject) -> None:
    transcript = Transcript(7, len(lengths))
    messages = [transcript.add(output) for output in outputs(lengths, ended)]
    assert transcript.ended == ended
    cut = data.draw(st.integers(0, len(messages)))
    seen: list[tuple[bytes, list[float], bool]] = [(b"", [], False)] * len(lengths)
    for message in messages[:cut]:
        tell(seen, message)
    repeated = transcript.repeat([len(tokens) // 4 for tokens, _, _ in seen])
    for message in repeated:
        if not seen[message.choice][2]:
            tell(seen, message)
    for choice, length in enumerate(lengths):
        tokens = [choice * 100 + position for position in range(length)]
        assert seen[choice][0] == b"".join(token.to_bytes(4, "little") for token in tokens)
        assert seen[choice][1] == [-token for token in tokens]
        assert seen[choice][2] == ended
    once = [message for message in [*messages[:cut], *repeated] if message.HasField("started")]
    assert [len(message.prompt_logprobs) for message in once] == [1]
    assert all(message.handle == REQUEST.key.handle for message in messages)


def test_positions_beyond_what_was_made_are_harmless() -> None:
    transcript = Transcript(7, 2)
    for output in outputs([2, 1], ended=False):
        transcript.add(output)
    assert transcript.repeat([9, 9]) == []
    assert [m.position for m in transcript.repeat([])] == [0, 0]
