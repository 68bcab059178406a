"""The order in which a Serve stream writes: cancels first, long prompts in turn with others."""

from hypothesis import given
from hypothesis import strategies as st
from warmfleet_proto.limits import FRAME_BYTES
from warmfleet_proto.worker_pb2 import ServeRequest, Submit
from warmfleet_router.backends.outbox import Outbox


def submit(handle: int, prompt: bytes) -> Submit:
    return Submit(handle=handle, prompt_tokens=len(prompt) // 4)


def drain(outbox: Outbox) -> list[ServeRequest]:
    frames = []
    while (frame := outbox.pop()) is not None:
        frames.append(frame)
    return frames


@given(st.lists(st.integers(1, 3 * FRAME_BYTES // 4), min_size=1, max_size=5))
def test_prompts_arrive_whole_in_bounded_frames(lengths: list[int]) -> None:
    outbox = Outbox()
    prompts = {i: bytes([i]) * 4 * n for i, n in enumerate(lengths, 1)}
    for handle, prompt in prompts.items():
        outbox.submit(submit(handle, prompt), prompt)
    got: dict[int, bytes] = {}
    for frame in drain(outbox):
        body = frame.submit if frame.HasField("submit") else frame.prompt
        assert len(body.token_ids) <= FRAME_BYTES
        assert (body.handle not in got) == frame.HasField("submit")
        got[body.handle] = got.get(body.handle, b"") + body.token_ids
    assert got == prompts
    assert list(got) == sorted(got)  # handles first appear in increasing order


def test_a_short_prompt_does_not_wait_for_a_long_one() -> None:
    outbox = Outbox()
    long = bytes(8 * FRAME_BYTES)
    outbox.submit(submit(1, long), long)
    outbox.submit(submit(2, b"abcd"), b"abcd")
    handles = [f.submit.handle or f.prompt.handle for f in drain(outbox)]
    assert handles.index(2) == 1


def test_cancels_go_first_and_only_for_what_the_worker_knows() -> None:
    outbox = Outbox()
    for handle in (1, 2, 3):
        outbox.submit(submit(handle, b"abcd"), b"abcd")
    assert outbox.pop() is not None  # 1 is with the worker
    outbox.cancel(1)
    outbox.cancel(3)  # was never written: no word of it
    frames = drain(outbox)
    assert [f.WhichOneof("body") for f in frames] == ["cancel", "submit"]
    assert (frames[0].cancel.handle, frames[1].submit.handle) == (1, 2)


def test_cancelling_a_half_written_prompt_writes_no_more_of_it() -> None:
    outbox = Outbox()
    long = bytes(3 * FRAME_BYTES)
    outbox.submit(submit(1, long), long)
    outbox.pop()
    outbox.cancel(1)
    assert [f.WhichOneof("body") for f in drain(outbox)] == ["cancel"]
