"""The sim worker's OpenAI API: what a client sees, and that answers are cached for the next turn."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import msgspec
import pytest
from warmfleet_worker.worker import Worker

from tests.process.fleet import sim_worker
from tests.process.gateway import expected

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


@asynccontextmanager
async def client(**settings: Any) -> AsyncIterator[tuple[Worker, aiohttp.ClientSession]]:
    async with (
        sim_worker(**settings) as worker,
        aiohttp.ClientSession(f"http://{worker.http_address}") as http,
    ):
        yield worker, http


async def post(http: aiohttp.ClientSession, path: str, **body: Any) -> dict[str, Any]:
    async with http.post(path, json=body) as response:
        assert response.status == 200, await response.text()
        answer: dict[str, Any] = await response.json()
        return answer


async def events(response: aiohttp.ClientResponse) -> list[Any]:
    lines = [line[6:].strip() for line in (await response.read()).split(b"\n\n") if line]
    assert lines.pop() == b"[DONE]"
    return [msgspec.json.decode(line) for line in lines]


async def test_completion_is_the_oracles() -> None:
    async with client(served_name="tiny") as (worker, http):
        prompt = list(range(40))
        answer = await post(http, TEXT, prompt=prompt, max_tokens=5, temperature=0)
        words = [f"w{token}" for token in expected(worker, prompt, 5)]
        assert answer["choices"] == [{"index": 0, "text": " ".join(words) + " ", "finish_reason": "length"}]
        assert (answer["model"], answer["usage"]["total_tokens"]) == ("tiny", 45)
        spelt = " ".join(f"w{token}" for token in prompt)
        again = await post(http, TEXT, prompt=spelt, max_tokens=5, temperature=0)
        assert again["choices"] == answer["choices"]
        assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == 32


async def test_next_turn_finds_the_answer_in_the_cache() -> None:
    async with client() as (_, http):
        messages = [{"role": "user", "content": "tell me all of it " * 20}]
        first = await post(http, CHAT, messages=messages, max_tokens=40)
        said = first["choices"][0]["message"]
        messages += [said, {"role": "user", "content": "go on"}]
        second = await post(http, CHAT, messages=messages, max_tokens=4)
        cached = second["usage"]["prompt_tokens_details"]["cached_tokens"]
        assert cached > first["usage"]["prompt_tokens"] + 16


@pytest.mark.parametrize("path", [CHAT, TEXT])
async def test_stream_says_what_the_whole_answer_says(path: str) -> None:
    async with client() as (_, http):
        body = {"messages": [{"role": "user", "content": "hello there"}], "prompt": "hello there"}
        whole = await post(http, path, **body, max_tokens=7, seed=3)
        options = {"stream": True, "stream_options": {"include_usage": True}}
        async with http.post(path, json=body | options | {"max_tokens": 7, "seed": 3}) as response:
            assert response.content_type == "text/event-stream"
            *chunks, last = await events(response)
        pieces = [chunk["choices"][0] for chunk in chunks]
        text = "".join(piece.get("text", "") or piece.get("delta", {}).get("content", "") for piece in pieces)
        choice = whole["choices"][0]
        assert text == (choice.get("text") or choice["message"]["content"])
        assert pieces[-1]["finish_reason"] == "length"
        assert last["usage"]["completion_tokens"] == 7


async def test_a_salt_keeps_caches_apart() -> None:
    async with client() as (_, http):
        prompt = list(range(40))
        for salt, cached in (("a", 0), ("b", 0), ("a", 32)):
            answer = await post(http, TEXT, prompt=prompt, max_tokens=1, cache_salt=salt)
            assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == cached


async def test_client_that_leaves_is_cancelled() -> None:
    async with client(sim={"timing": {"step_s": 0.005}}) as (worker, http):
        body = {"prompt": "hello", "max_tokens": 50_000, "stream": True}
        async with http.post(TEXT, json=body) as response:
            await response.content.readline()
            assert worker.scheduler.requests
        async with asyncio.timeout(60):
            assert await worker.runner.drain(60) == 0


@pytest.mark.parametrize(
    "body",
    [b"{", b"[]", b"{}", b'{"prompt": ""}', b'{"prompt": [99999]}', b'{"prompt": "a", "max_tokens": -1}'],
)
async def test_bad_bodies(body: bytes) -> None:
    async with client() as (_, http), http.post(TEXT, data=body) as response:
        assert response.status == 400
        assert (await response.json())["error"]["message"]


async def test_what_other_routers_ask() -> None:
    async with client(served_name="tiny", total_blocks=50) as (worker, http):
        for path in ("/health", "/get_server_info", "/get_model_info", "/v1/models"):
            async with http.get(path) as response:
                assert response.status == 200
        async with http.get("/v1/models") as response:
            assert (await response.json())["data"][0]["id"] == "tiny"
        await post(http, TEXT, prompt=list(range(100)), max_tokens=1)
        assert worker.scheduler.cache.pool.cached == len(worker.presence) == 6
        async with http.post("/flush_cache") as response:
            assert response.status == 200
        assert worker.scheduler.cache.pool.free == 50
        assert len(worker.presence) == 0
