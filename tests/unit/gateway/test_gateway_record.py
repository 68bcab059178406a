"""The line that a request leaves in the log holds nothing that its client wrote."""

import json
import logging
from typing import Any

import pytest
from warmfleet_proto.errors import BadRequest
from warmfleet_proto.router_pb2 import Placement
from warmfleet_proto.worker_pb2 import Sampling
from warmfleet_router.gateway.generation import Generation, GenerationRequest
from warmfleet_router.gateway.intake import ANONYMOUS
from warmfleet_router.gateway.placing import Upstream
from warmfleet_router.gateway.record import Record
from warmfleet_router.gateway.retries import RetryBudget
from warmfleet_router.gateway.schema import parse_chat
from warmfleet_router.metrics import Metrics

HELLO = '{"role": "user", "content": "hello"}'
SECRET = "my secret planet"


def logged(error: BaseException, caplog: pytest.LogCaptureFixture) -> dict[str, Any]:
    caplog.set_level(logging.INFO)
    Record(Metrics(), "r", 0.0).ended(error, 1.0)
    (line,) = caplog.records
    fields: dict[str, Any] = line.fields  # type: ignore[attr-defined]
    return fields


def refused(more: str, message: str = HELLO) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        parse_chat(f'{{"model": "m", "messages": [{message}]{more}}}'.encode())
    return caught.value


@pytest.mark.parametrize(
    ("error", "field"),
    [
        (refused(f', "{SECRET}": 1'), "body"),
        (refused(f', "metadata": {{"{SECRET}": 1, "{SECRET}": 2}}'), "body"),
        (refused(f', "metadata": {{"model.{SECRET}": 1, "model.{SECRET}": 2}}'), "model"),
        (refused("", f'{{"role": "user", "content": "x", "{SECRET}": 1}}'), "messages"),
        (refused(f', "stream": true, "stream_options": {{"{SECRET}": 1}}'), "stream_options"),
    ],
    ids=["unknown", "twice", "dotted", "unknown in a message", "unknown in an option"],
)
def test_a_clients_own_key_stays_out_of_the_log(
    error: BadRequest, field: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert SECRET in (error.field or "")  # the client is told
    line = logged(error, caplog)
    assert line["field"] == field
    assert SECRET not in json.dumps(line, default=str) + caplog.text


@pytest.mark.parametrize(
    ("field", "shown"),
    [("top_p", "top_p"), ("messages[0].role", "messages"), ("Authorization",) * 2, (None, "body")],
)
def test_a_known_field_is_logged(field: str | None, shown: str, caplog: pytest.LogCaptureFixture) -> None:
    assert logged(BadRequest("no", field), caplog)["field"] == shown


def test_of_an_answer_that_went_on_elsewhere_the_overlap_is_the_prompts(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its last placement was for the prompt and the tokens that had come."""
    caplog.set_level(logging.INFO)
    generation = Generation(
        Upstream("g", None, None, None, RetryBudget(), lambda: 0.0),  # type: ignore[arg-type]
        GenerationRequest("r", ANONYMOUS, "m", b"\0" * 40, Sampling(), 60.0),
        lambda: None,
    )
    generation.placement = Placement(worker="b", available_tokens=64, expected_tokens=48)
    record = Record(Metrics(), "r", 0.0)
    record.generations = [generation]
    record.ended(None, 1.0)
    fields: dict[str, Any] = caplog.records[-1].fields  # type: ignore[attr-defined]
    assert (fields["overlap_available"], fields["overlap_expected"]) == (10, 10)
