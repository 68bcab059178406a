"""A stream on its way through: byte for byte, however it is cut; its usage found, and hidden if unasked."""

import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from warmfleet_proto.errors import WorkerLost
from warmfleet_router.servers.sse import MAX_EVENT_BYTES, Stream, read_body

USAGE = (
    b'data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":2,'
    b'"prompt_tokens_details":{"cached_tokens":4}}}\n\n'
)
EVENTS = [
    b": comment\n\n",
    b'data: {"choices":[{"delta":{"content":"say \\"usage\\" and [DONE]"}}],"usage":null}\n\n',
    b"event: message\ndata: {\"choices\":[{\"delta\":{}}]}\n\n",
    USAGE,
    b"data: [DONE]\n\n",
]  # fmt: skip


def through(stream: Stream, data: bytes, cuts: list[int]) -> bytes:
    edges = [0, *sorted({cut % len(data) for cut in cuts}), len(data)]
    return b"".join(stream.feed(data[a:b]) for a, b in pairwise(edges))


@given(cuts=st.lists(st.integers(0, 10_000), max_size=20), crlf=st.booleans())
def test_bytes_are_kept_and_usage_is_found(cuts: list[int], crlf: bool) -> None:
    data = b"".join(EVENTS)
    if crlf:
        data = data.replace(b"\n", b"\r\n")
    stream = Stream(hide=False)
    assert through(stream, data, cuts) == data
    assert stream.done
    assert stream.usage is not None
    assert (stream.usage.prompt_tokens, stream.usage.cached_tokens) == (9, 4)


@given(cuts=st.lists(st.integers(0, 10_000), max_size=20))
def test_usage_that_was_not_asked_for_is_hidden(cuts: list[int]) -> None:
    stream = Stream(hide=True)
    assert through(stream, b"".join(EVENTS), cuts) == b"".join(EVENTS).replace(USAGE, b"")
    assert stream.usage is not None
    assert stream.usage.completion_tokens == 2


def test_usage_beside_text_is_never_hidden() -> None:
    event = b'data: {"choices":[{"text":"x"}],"usage":{"prompt_tokens":1}}\n\n'
    assert Stream(hide=True).feed(event) == event


def test_an_error_event_is_seen_and_passed_on() -> None:
    stream = Stream(hide=True)
    event = b'data: {"error":{"message":"out of memory"}}\n\n'
    assert stream.feed(event) == event
    assert stream.failed


def test_an_event_without_end_is_refused() -> None:
    stream = Stream(hide=False)
    for _ in range(MAX_EVENT_BYTES // 65536):
        assert stream.feed(b"x" * 65536) == b""
    with pytest.raises(WorkerLost, match="more than"):
        stream.feed(b"x")


def test_an_event_in_many_pieces_is_not_copied_for_each() -> None:
    stream, began = Stream(hide=True), time.process_time()
    for _ in range(60_000):
        assert stream.feed(b"x\n") == b""
    assert stream.feed(b"\n") == b"x\n" * 60_000 + b"\n"
    assert time.process_time() - began < 4


@given(
    data=st.lists(st.binary(max_size=60) | st.sampled_from([*EVENTS, b"\n", b"\r\n\r\n", b'data: {"usage":']))
)
def test_anything_passes(data: list[bytes]) -> None:
    stream = Stream(hide=True)
    for part in data:
        stream.feed(part)


def test_a_body_tells_its_usage() -> None:
    usage = read_body(b'{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":1}}')
    assert usage is not None
    assert (usage.prompt_tokens, usage.cached_tokens) == (3, None)


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"<html>", b'{"error":{"message":"no"}}', b'{"object":"error"}', b"\xff"]
)
def test_an_error_that_poses_as_an_answer_is_none(body: bytes) -> None:
    with pytest.raises(WorkerLost):
        read_body(body)
