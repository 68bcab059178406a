"""What a gateway may send: every bad field is named, and nothing else escapes."""

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from warmfleet_proto import limits
from warmfleet_proto.errors import BadRequest
from warmfleet_proto.worker_pb2 import Sampling, Submit
from warmfleet_worker.admission import Limits
from warmfleet_worker.engine.sim import SimEngine
from warmfleet_worker.submission import Submission, params

ENGINE = SimEngine(vocab_size=1000, total_blocks=1000, max_context=10_000)
BOUNDS = Limits(block_size=16, max_context=10_000, max_running=8, max_waiting=8, chunk_tokens=64)


def ids(*tokens: int) -> bytes:
    return np.array(tokens, np.uint32).tobytes()


def submission(submit: Submit) -> Submission:
    return Submission(submit, ENGINE, BOUNDS)


@pytest.mark.parametrize(
    ("submit", "field"),
    [
        (Submit(), "prompt_tokens"),
        (Submit(prompt_tokens=limits.PROMPT_BYTES // 4 + 1), "prompt_tokens"),
        (Submit(prompt_tokens=10_000), "prompt"),
        (Submit(prompt_tokens=2, token_ids=ids(1, 2, 3)), "token_ids"),
        (Submit(prompt_tokens=2, token_ids=b"abc"), "token_ids"),
        (Submit(prompt_tokens=2, token_ids=ids(1, 1000)), "token_ids"),
        (Submit(prompt_tokens=2, token_ids=ids(1, 2**32 - 1)), "token_ids"),
        (Submit(prompt_tokens=9_000, token_ids=bytes(limits.FRAME_BYTES + 4)), "token_ids"),
        (Submit(prompt_tokens=1, request_id="x" * 129), "request_id"),
        (Submit(prompt_tokens=1, salt=bytes(65)), "salt"),
        (Submit(prompt_tokens=1, deadline_s=-1), "deadline_s"),
        (Submit(prompt_tokens=1, deadline_s=float("nan")), "deadline_s"),
        (Submit(prompt_tokens=1, deadline_s=float("inf")), "deadline_s"),
        (Submit(prompt_tokens=1, sampling=Sampling(choices=9)), "n"),
    ],
)
def test_bad_submit(submit: Submit, field: str) -> None:
    with pytest.raises(BadRequest) as caught:
        submission(submit)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("sampling", "field"),
    [
        (Sampling(temperature=-0.1), "temperature"),
        (Sampling(temperature=float("nan")), "temperature"),
        (Sampling(temperature=float("inf")), "temperature"),
        (Sampling(top_p=1.1), "top_p"),
        (Sampling(min_p=-1), "min_p"),
        (Sampling(choices=129), "choices"),
        (Sampling(logprobs=21), "logprobs"),
        (Sampling(prompt_logprobs=21), "prompt_logprobs"),
        (Sampling(stop_ids=b"abc"), "stop_ids"),
        (Sampling(stop_ids=bytes(4 * 1025)), "stop_ids"),
    ],
)
def test_bad_sampling(sampling: Sampling, field: str) -> None:
    with pytest.raises(BadRequest) as caught:
        params(sampling)
    assert caught.value.field == field


def test_defaults_are_off() -> None:
    made = params(Sampling())
    assert (made.sampling.temperature, made.sampling.top_p, made.sampling.logprobs) == (0.0, 1.0, None)
    assert (made.choices, made.stop_ids, made.prompt_logprobs) == (1, frozenset(), None)
    assert params(Sampling(logprobs=0)).sampling.logprobs == 0
    assert params(Sampling(stop_ids=ids(3, 4))).stop_ids == {3, 4}
    assert params(Sampling(stop_ids=ids(3, 4), ignore_eos=True)).stop_ids == frozenset()


def test_scores_of_a_prompt_fit_one_message() -> None:
    engine = SimEngine(total_blocks=20_000, max_context=200_000)
    bounds = BOUNDS._replace(max_context=200_000)
    most = limits.MESSAGE_BYTES // 2 // (16 + 8 * 20)
    Submission(Submit(prompt_tokens=most, sampling=Sampling(prompt_logprobs=20)), engine, bounds)
    with pytest.raises(BadRequest, match="prompt_logprobs"):
        Submission(Submit(prompt_tokens=most + 1, sampling=Sampling(prompt_logprobs=20)), engine, bounds)


@given(st.lists(st.integers(0, 999), min_size=1, max_size=50), st.data())
def test_frames_make_the_prompt(tokens: list[int], data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(tokens)), max_size=3)))
    parts = [tokens[a:b] for a, b in zip([0, *cuts], [*cuts, len(tokens)], strict=True)]
    made = submission(
        Submit(handle=3, prompt_tokens=len(tokens), token_ids=ids(*parts[0]), booking=9, deadline_s=5)
    )
    for part in parts[1:]:
        made.add(ids(*part))
    assert made.complete
    request = made.request("gateway", 100.0)
    assert request.prompt == ids(*tokens)
    assert (request.key.gateway, request.key.handle, request.booking, request.deadline) == (
        "gateway",
        3,
        9,
        105.0,
    )
    with pytest.raises(BadRequest):
        made.add(ids(1))


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    submit = Submit()
    try:
        submit.ParseFromString(data)
    except Exception:  # not a message at all: gRPC refuses it before us
        return
    with contextlib.suppress(BadRequest):
        submission(submit)
