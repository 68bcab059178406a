"""Requests relayed to servers that are not ours: HTTP faces of sim workers stand for them."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from warmfleet_proto.settings import ConfigError
from warmfleet_router.index.approximate import START_BLOCKS
from warmfleet_worker.worker import Worker

from tests.process import gateways
from tests.process.fleet import sim_worker
from tests.process.gateway import expected
from tests.process.gateways import one_tokenizer  # noqa: F401

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
LONG = [{"role": "user", "content": " ".join(f"w{n}" for n in range(400))}]


class Front:
    def __init__(self, addresses: dict[str, str], workers: list[Worker], http: aiohttp.ClientSession) -> None:
        self.base = f"http://{addresses['http']}"
        self.grpc = addresses["grpc"]
        self.workers = workers
        self.http = http

    async def post(self, path: str, **body: Any) -> dict[str, Any]:
        async with self.http.post(self.base + path, json={"model": "tiny"} | body) as response:
            assert response.status == 200, await response.text()
            answer: dict[str, Any] = await response.json()
            return answer | {"worker": response.headers["X-Warmfleet-Worker"]}

    async def stream(self, path: str, **body: Any) -> list[bytes]:
        asked = {"model": "tiny", "stream": True} | body
        async with self.http.post(self.base + path, json=asked) as response:
            assert response.status == 200, await response.text()
            assert response.content_type == "text/event-stream"
            return [line for line in (await response.read()).split(b"\n\n") if line]

    async def admin(self) -> list[dict[str, Any]]:
        async with self.http.get(f"{self.base}/admin/workers") as response:
            shown: list[dict[str, Any]] = (await response.json())["workers"]
            return shown


@asynccontextmanager
async def front(
    count: int, worker: dict[str, Any] | None = None, own: list[str] | None = None, **settings: Any
) -> AsyncIterator[Front]:
    async with AsyncExitStack() as stack:
        given = {"served_name": "tiny"} | (worker or {})
        workers = [await stack.enter_async_context(sim_worker(name=f"w{n}", **given)) for n in range(count)]
        backends = [{"url": f"http://{w.http_address}"} for w in workers]
        addresses = await stack.enter_async_context(gateways.router(own or [], backends=backends, **settings))
        http = await stack.enter_async_context(aiohttp.ClientSession())
        made = Front(addresses, workers, http)
        await gateways.healthy(made.base)
        await until(lambda: healthy(made, count))
        yield made


async def healthy(made: Front, count: int) -> bool:
    return sum(w["state"] == "healthy" for w in await made.admin()) >= count


async def until(true: Callable[[], Any]) -> None:
    async with asyncio.timeout(60):
        while not await true():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_answers_are_the_servers_own() -> None:
    async with front(1) as made:
        prompt = list(range(40))
        words = [f"w{token}" for token in expected(made.workers[0], prompt, 5)]
        answer = await made.post(TEXT, prompt=prompt, max_tokens=5, temperature=0)
        assert answer["choices"][0]["text"] == " ".join(words) + " "
        events = await made.stream(TEXT, prompt=prompt, max_tokens=5, temperature=0)
        assert events.pop() == b"data: [DONE]"
        chunks = [msgspec.json.decode(event[6:]) for event in events]
        assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == answer["choices"][0]["text"]
        assert not any("usage" in chunk for chunk in chunks)


async def test_usage_is_passed_on_where_it_was_asked_for() -> None:
    async with front(1) as made:
        options = {"include_usage": True}
        events = await made.stream(CHAT, messages=LONG, max_tokens=3, stream_options=options)
        assert msgspec.json.decode(events[-2][6:])["usage"]["completion_tokens"] == 3


async def test_tokens_are_counted_as_the_server_says() -> None:
    """Not as events: some tell of usage or of the end, and others may hold many tokens."""
    async with front(1) as made:
        for options in ({}, {"stream_options": {"include_usage": True}}):
            await made.stream(CHAT, messages=LONG, max_tokens=5, **options)
        await made.post(CHAT, messages=LONG, max_tokens=5)
        async with made.http.get(f"{made.base}/metrics") as response:
            assert "gateway_completion_tokens_total 15.0" in await response.text()


async def test_a_client_of_http_1_0_gets_the_bare_events() -> None:
    async with front(1) as made:
        body = msgspec.json.encode({"model": "tiny", "messages": LONG, "max_tokens": 3, "stream": True})
        reader, writer = await asyncio.open_connection(*made.base.removeprefix("http://").split(":"))
        head = (
            f"POST {CHAT} HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        answer, _, events = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        await writer.wait_closed()
        assert b" 200 OK\r\n" in answer
        assert events.startswith(b"data: {")
        assert events.endswith(b"data: [DONE]\n\n")


async def test_models_are_listed() -> None:
    async with front(1) as made, made.http.get(f"{made.base}/v1/models") as response:
        assert [model["id"] for model in (await response.json())["data"]] == ["tiny"]


async def test_the_next_turn_goes_where_the_last_one_is_cached() -> None:
    async with front(3, worker={"sim": {"timing": {"prefill_token_s": 1e-3}}}) as made:
        talks = [[{"role": "user", "content": f"talk {talk} " + LONG[0]["content"]}] for talk in range(6)]
        firsts = await asyncio.gather(*(made.post(CHAT, messages=talk, max_tokens=4) for talk in talks))
        assert len({first["worker"] for first in firsts}) > 1
        for talk, first in zip(talks, firsts, strict=True):
            messages = [*talk, first["choices"][0]["message"], {"role": "user", "content": "go on"}]
            second = await made.post(CHAT, messages=messages, max_tokens=4)
            assert second["worker"] == first["worker"]
            assert second["usage"]["prompt_tokens_details"]["cached_tokens"] >= 384
        workers = await made.admin()
        assert {worker["presence"] for worker in workers} == {"guessed"}, workers
        assert sum(worker["hit_rate"]["total"]["hit_tokens"] for worker in workers) >= 6 * 384


async def test_books_are_empty_after_answers_and_cancels() -> None:
    async with front(1, worker={"sim": {"timing": {"step_s": 0.02}}}) as made:
        asked = {"model": "tiny", "messages": LONG, "max_tokens": 5000, "stream": True}
        async with made.http.post(made.base + CHAT, json=asked) as response:
            await response.content.readany()
            assert made.workers[0].runner.scheduler.requests
        await until(lambda: idle(made))


async def idle(made: Front) -> bool:
    """A client that left is one less at the server too."""
    (worker,) = await made.admin()
    return not worker["bookings"] and not made.workers[0].runner.scheduler.requests


async def test_a_server_that_is_gone_is_not_asked() -> None:
    async with front(2) as made:
        first = await made.post(CHAT, messages=LONG, max_tokens=2)
        (gone,) = [w for w in made.workers if w.http_address == first["worker"]]
        await gone.close()
        again = await made.post(CHAT, messages=LONG, max_tokens=2)
        assert again["worker"] != first["worker"]
        await until(lambda: lost(made))


async def lost(made: Front) -> bool:
    return sorted(w["state"] for w in await made.admin()) == ["healthy", "lost"]


async def test_a_refusal_is_passed_on_as_it_is() -> None:
    async with front(1) as made:
        body = {"model": "tiny", "prompt": [10**7], "max_tokens": 2}
        async with made.http.post(made.base + TEXT, json=body) as response:
            assert response.status == 400
            assert "outside the vocabulary" in (await response.json())["error"]["message"]
        (worker,) = await made.admin()
        assert (worker["dropped"], worker["bookings"]) == (0, 0)


async def test_own_workers_and_servers_stand_side_by_side() -> None:
    async with (
        sim_worker(name="own", served_name="ours", sim=gateways.SIM) as own,
        front(1, own=[own.grpc_address]) as made,
    ):
        await until(lambda: healthy(made, 2))
        asked = {"messages": LONG, "max_tokens": 2}
        assert (await made.post(CHAT, **asked))["worker"] == made.workers[0].http_address
        assert (await made.post(CHAT, model="ours", **asked))["worker"] == "own"
        async with made.http.post(made.base + CHAT, json={"model": "no", **asked}) as response:
            assert response.status == 404


async def test_servers_need_no_model_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Path:
        raise ConfigError("the demo model is not installed")

    monkeypatch.setattr("warmfleet_router.local.demo.weights", missing)
    async with (
        sim_worker(name="own", served_name="ours", sim=gateways.SIM) as own,
        front(1, own=[own.grpc_address], model="") as made,
        gateways.gateway(made.grpc, model="") as apart,
    ):
        await until(lambda: healthy(made, 2))
        for base in (made.base, f"http://{apart['http']}"):
            asked = {"model": "tiny", "messages": LONG, "max_tokens": 2}
            async with made.http.post(base + CHAT, json=asked) as response:
                assert (await response.json())["choices"]
            async with made.http.post(base + CHAT, json=asked | {"model": "ours"}) as response:
                assert response.status == 404
                assert "set model or tokenizers.ours" in (await response.json())["error"]["message"]
    with pytest.raises(ConfigError, match="demo model"):
        async with gateways.router([], model=""):
            pass


async def test_what_a_server_finds_of_a_text_is_counted_in_the_tokens_that_were_guessed() -> None:
    """Words of two or three tokens are taken for more: what is found is not less than what is held."""
    async with front(2, worker={"sim": {"timing": {"prefill_token_s": 1e-4}}}) as made:
        for talk in range(4):
            messages: list[dict[str, Any]] = []
            for turn in range(4):
                words = " ".join(f"w{100 + talk * 300 + (turn * 7 + n) % 300}" for n in range(700))
                messages.append({"role": "user", "content": words})
                answer = await made.post(CHAT, messages=messages, max_tokens=4)
                assert (answer["usage"]["prompt_tokens_details"]["cached_tokens"] > 0) == (turn > 0)
                messages.append(answer["choices"][0]["message"])
        for worker in await made.admin():
            assert (worker["guessed_blocks"], worker["confidence"]) == (
                START_BLOCKS,
                pytest.approx(1.0, abs=0.02),
            )
