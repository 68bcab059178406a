"""What a server is asked of itself."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from warmfleet_proto.errors import WorkerLost
from warmfleet_router.events.mirror import MAX_NAMES
from warmfleet_router.fleet.roster import MAX_FINGERPRINT_BYTES
from warmfleet_router.servers.backend import Backend
from warmfleet_router.servers.discovery import HEALTH_LOOKS, Probe
from warmfleet_router.servers.watcher import LEAST_NAMES, POLLS, names_for


async def test_a_server_that_sends_elsewhere_is_not_followed() -> None:
    """Neither are requests: what is behind it has not been configured."""
    asked: list[str] = []

    async def elsewhere(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.Response(status=302, headers={"Location": "/internal"})

    app = web.Application()
    app.add_routes([web.get("/{any:.*}", elsewhere)])
    async with TestServer(app) as server, aiohttp.ClientSession() as session:
        probe = Probe(Backend(url=str(server.make_url(""))), session)
        with pytest.raises(WorkerLost, match="answers 302"):
            await probe.names()
    assert asked == ["/v1/models"]


@pytest.mark.parametrize(("events", "block_size"), [("", 16), ("tcp://127.0.0.1:5557", 1)])
async def test_pages_of_one_token_are_for_those_whose_events_name_them(events: str, block_size: int) -> None:
    """Who is keyed on text would have a key for four bytes of it."""

    async def models(_: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "m"}]})

    async def info(_: web.Request) -> web.Response:
        return web.json_response({"page_size": 1, "max_total_num_tokens": 3200})

    app = web.Application()
    app.add_routes([web.get("/v1/models", models), web.get("/get_server_info", info)])
    async with TestServer(app) as server, aiohttp.ClientSession() as session:
        backend = Backend(url=str(server.make_url("")), kind="sglang", events=events)
        status = await Probe(backend, session).status(1)
    assert (status.block_size, status.total_blocks) == (block_size, 3200 // block_size)


async def test_a_model_that_is_known_stays_a_servers_own_while_it_is_there() -> None:
    """Some list the latest first; an adapter may have the name that a model had."""
    listed = [{"id": "new"}, {"id": "old"}]

    async def models(_: web.Request) -> web.Response:
        return web.json_response({"data": listed})

    app = web.Application()
    app.add_routes([web.get("/v1/models", models)])
    async with TestServer(app) as server, aiohttp.ClientSession() as session:
        probe = Probe(Backend(url=str(server.make_url("")), kind="openai"), session)
        assert (await probe.names()).model == "new"
        assert (await probe.names("old"))[:3] == ("old", ["new"], ["new"])
        assert (await probe.names("gone")).model == "new"
        listed[1]["parent"] = "new"
        assert (await probe.names("old")).model == "new"


async def test_models_whose_long_names_begin_alike_are_told_apart() -> None:
    """As names that are paths do. Their KV would count as one, and requests would go to the wrong one."""
    name = ""

    async def models(_: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": name}]})

    app = web.Application()
    app.add_routes([web.get("/v1/models", models)])
    fingerprints = set()
    async with TestServer(app) as server, aiohttp.ClientSession() as session:
        for name in ("/srv/models/huggingface/meta-llama/Meta-Llama-3-8B", "short"):
            for end in ("", "-Instruct", "-Instruct-with-a-name-that-goes-on"):
                name += end
                fingerprints.add((await _probe(server, session).status(1)).model_fingerprint)
    assert len(fingerprints) == 6
    assert max(map(len, fingerprints)) <= MAX_FINGERPRINT_BYTES


async def test_a_server_that_is_back_is_asked_for_its_load_again() -> None:
    """What stood there before had no metrics: a proxy without its server, or another server."""
    ready = False

    async def models(_: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "m"}]})

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(text="vllm:num_requests_running 3.0\n", status=200 if ready else 404)

    app = web.Application()
    app.add_routes([web.get("/v1/models", models), web.get("/metrics", metrics)])
    async with TestServer(app) as server, aiohttp.ClientSession() as session:
        probe = _probe(server, session)
        await probe.status(1)
        assert (await probe.figures()).running == 0
        ready = True
        await probe.status(2)
        assert (await probe.figures()).running == 3


class Sick:
    """A server whose metrics are well; ``status`` is what it says of its health, 0 nothing at all."""

    def __init__(self) -> None:
        self.status = 200
        self.asked = 0

    async def models(self, _: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "m"}]})

    async def metrics(self, _: web.Request) -> web.Response:
        return web.Response(text="vllm:num_requests_running 3.0\n")

    async def health(self, _: web.Request) -> web.Response:
        self.asked += 1
        if not self.status:
            await asyncio.Event().wait()
        return web.Response(status=self.status)


@asynccontextmanager
async def sick() -> AsyncIterator[tuple[Sick, Probe]]:
    served, app = Sick(), web.Application()
    app.add_routes([web.get("/v1/models", served.models), web.get("/metrics", served.metrics)])
    app.add_routes([web.get("/health", served.health)])
    async with TestServer(app) as server, aiohttp.ClientSession() as session:
        yield served, _probe(server, session)


async def test_a_server_that_says_that_it_is_not_well_is_lost_until_it_is() -> None:
    async with sick() as (served, probe):
        await probe.status(1)
        served.status = 503
        for _ in range(HEALTH_LOOKS - 1):
            await probe.figures()
        for _ in range(POLLS):  # at every look from then on
            with pytest.raises(WorkerLost, match="503 to /health"):
                await probe.figures()
        with pytest.raises(WorkerLost, match="503 to /health"):
            await probe.status(2)
        served.status = 200
        assert (await probe.figures()).running == 3


async def test_health_is_asked_for_now_and_then() -> None:
    async with sick() as (served, probe):
        await probe.status(1)
        for _ in range(2 * HEALTH_LOOKS):
            await probe.figures()
        assert served.asked == 3


@pytest.mark.parametrize("status", [404, 403, 501])
async def test_a_server_without_a_page_of_health_is_taken_at_its_metrics(status: int) -> None:
    async with sick() as (served, probe):
        served.status = status
        for _ in range(2 * HEALTH_LOOKS):
            assert (await probe.figures()).running == 3
        assert served.asked == 1


async def test_a_server_too_busy_to_say_how_it_is_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("warmfleet_router.servers.discovery.HEALTH_S", 0.05)
    async with sick() as (served, probe):
        served.status = 0
        for _ in range(HEALTH_LOOKS):
            assert (await probe.figures()).running == 3
        assert served.asked == 1


def _probe(server: TestServer, session: aiohttp.ClientSession) -> Probe:
    return Probe(Backend(url=str(server.make_url("")), kind="vllm"), session)


def test_of_a_cache_whose_size_is_not_known_many_blocks_are_remembered() -> None:
    """As of a vLLM that shows no statistics."""
    assert names_for(0) == MAX_NAMES
    assert names_for(1) == LEAST_NAMES
    assert names_for(1 << 30) == 4 * MAX_NAMES
    assert names_for(LEAST_NAMES) == 2 * LEAST_NAMES
