"""A router that begins beside a server at work: it knows what that holds before it takes calls."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from warmfleet_router.events import vllm
from warmfleet_router.events.batch import Batch
from warmfleet_router.fleet.agreement import ENOUGH
from warmfleet_router.servers import watcher

from tests.process import gateways
from tests.process.gateways import one_tokenizer  # noqa: F401
from tests.process.test_event_subscriber import RELEASE, Publisher
from tests.process.test_servers import CHAT
from tests.unit.events.engine import PROMPTS, SIZE, Engine

METRICS = f'vllm:cache_config_info{{block_size="{SIZE}",num_gpu_blocks="512"}} 1.0\n'


async def models(_: web.Request) -> web.Response:
    return web.json_response({"data": [{"id": "tiny", "max_model_len": 4096}]})


async def chat(_: web.Request) -> web.Response:
    usage = {"prompt_tokens": 600, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 590}}
    return web.json_response({"choices": [], "usage": usage})


@asynccontextmanager
async def server(told: str = METRICS) -> AsyncIterator[tuple[str, Publisher]]:
    """The URL of one that is idle, and has computed and told before."""

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(text=told)

    app = web.Application()
    app.add_routes([web.get("/v1/models", models), web.get("/metrics", metrics), web.post(CHAT, chat)])
    engine = Engine(RELEASE)
    for prompt in PROMPTS:
        engine.compute(prompt)
    publisher = Publisher(engine)
    try:
        async with TestServer(app) as http:
            yield str(http.make_url("")), publisher
    finally:
        await publisher.close()


async def shown(addresses: dict[str, str]) -> dict[str, Any]:
    url = f"http://{addresses['http']}/admin/workers"
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        worker: dict[str, Any]
        (worker,) = (await response.json())["workers"]
        return worker


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
async def test_a_router_is_ready_when_it_has_heard_what_an_idle_server_remembers(kind: str) -> None:
    async with server() as (url, publisher):
        backend = {
            "url": url,
            "kind": kind,
            "events": publisher.endpoint,
            "replay": publisher.replay_endpoint,
        }
        async with gateways.router([], backends=[backend]) as addresses:
            assert (await shown(addresses))["held_blocks"] == len(publisher.engine.present) > 8


@pytest.mark.parametrize("told", ["", METRICS.replace(f'size="{SIZE}"', f'size="{8 * SIZE}"')])
async def test_blocks_are_as_long_as_events_have_them(told: str) -> None:
    """vLLM's metrics say nothing of that with ``--disable-log-stats``, and another size with
    ``--decode-context-parallel-size``."""
    async with server(told) as (url, publisher):
        events = {"events": publisher.endpoint, "replay": publisher.replay_endpoint}
        async with gateways.router([], backends=[{"url": url, "kind": "vllm", **events}]) as addresses:
            async with asyncio.timeout(60):
                while (await shown(addresses))["held_blocks"] != len(publisher.engine.present):  # noqa: ASYNC110
                    await asyncio.sleep(0.02)


async def test_a_server_out_of_reach_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("warmfleet_router.app.SETTLE_S", 3600.0)
    nowhere: dict[str, Any] = {"url": "http://127.0.0.1:9", "kind": "vllm"}
    events = {"events": "tcp://127.0.0.1:9", "replay": "tcp://127.0.0.1:9"}
    async with server() as (url, publisher):
        asked = {"url": url, "kind": "vllm", "events": publisher.endpoint}
        async with gateways.router([], backends=[asked, nowhere | events]) as addresses:
            assert addresses["http"]


async def test_events_that_could_not_be_followed_are_followed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sockets run out, ports are taken. What was told before must not be gone by for ever."""
    monkeypatch.setattr(watcher, "EVENTS_AGAIN_S", 0.0)
    failures, batch = [OSError("too many open files")], vllm.Decoder.batch

    def fails_once(decoder: vllm.Decoder, payload: bytes) -> Batch:
        if failures:
            raise failures.pop()
        return batch(decoder, payload)

    async with server() as (url, publisher):
        events = {"events": publisher.endpoint, "replay": publisher.replay_endpoint}
        async with gateways.router([], backends=[{"url": url, "kind": "vllm", **events}]) as addresses:
            assert (await shown(addresses))["held_blocks"] > 8
            monkeypatch.setattr(vllm.Decoder, "batch", fails_once)
            publisher.engine.reset()
            async with asyncio.timeout(60):
                while failures:  # until its subscription is through
                    await publisher.publish(len(publisher.engine.log) - 1)
                    await asyncio.sleep(0.02)
                while (await shown(addresses))["held_blocks"]:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
                while not (await shown(addresses))["held_blocks"]:
                    publisher.engine.compute(PROMPTS[0])
                    await publisher.publish(len(publisher.engine.log) - 1)
                    await asyncio.sleep(0.05)


@pytest.mark.parametrize("picture", [True, False])
async def test_an_answer_to_a_prompt_whose_ids_are_not_known_says_nothing_of_events(picture: bool) -> None:
    """A picture's are nowhere to be had, others this server does not tell."""
    shows: Any = {"type": "image_url", "image_url": {"url": "http://x/cat.png"}}
    content = [{"type": "text", "text": "what is this?"}, shows] if picture else "what is this?"
    async with server() as (url, publisher):
        events = {"events": publisher.endpoint, "replay": publisher.replay_endpoint}
        async with (
            gateways.router([], backends=[{"url": url, "kind": "vllm", **events}]) as addresses,
            aiohttp.ClientSession(f"http://{addresses['http']}") as session,
        ):
            body = {"model": "tiny", "messages": [{"role": "user", "content": content}]}
            for _ in range(ENOUGH + 5):
                async with session.post(CHAT, json=body) as response:
                    assert response.status == 200
            worker = await shown(addresses)
    assert (worker["agreement"], worker["presence"]) == (None, "announced")
    assert worker["hit_rate"]["total"]["hit_tokens"] > 0
