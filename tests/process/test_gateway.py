"""The OpenAI API end to end over sim workers, with the router in the gateway's process and elsewhere."""

import asyncio
import hashlib
import json
import logging
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest
from warmfleet_router import booking
from warmfleet_router.gateway import job, schema, service
from warmfleet_router.gateway.choices import ChoiceText
from warmfleet_worker.worker import Worker

from tests.process.fleet import sim_worker
from tests.process.gateways import SIM, gateway, healthy, one_tokenizer, router

__all__ = ["one_tokenizer"]

SLOW = {"vocab_size": SIM["vocab_size"], "timing": {"step_s": 0.01}}
ENDLESS = 50_000  # tokens: steps of SLOW for longer than any test lasts
SLOW_PREFILL = {"vocab_size": SIM["vocab_size"], "timing": {"prefill_token_s": 0.02}}  # 0.6 s a prompt


@dataclass
class Stack:
    url: str
    admin: str
    workers: list[Worker]
    http: aiohttp.ClientSession

    async def chat(self, path: str = "/v1/chat/completions", **fields: Any) -> dict[str, Any]:
        async with self.http.post(self.url + path, json=body(**fields)) as response:
            assert response.status == 200, await response.text()
            answer: dict[str, Any] = await response.json()
            return answer

    def running(self) -> int:
        return sum(len(worker.scheduler.requests) for worker in self.workers)

    async def bookings(self) -> int:
        async with self.http.get(f"{self.admin}/admin/workers") as response:
            return int((await response.json())["fleet"]["bookings"])


def body(**fields: Any) -> dict[str, Any]:
    if "prompt" not in fields:
        fields = {"messages": [{"role": "user", "content": "Tell me of rivers and bridges."}]} | fields
    return {"model": "sim", "max_tokens": 8, "temperature": 0} | fields


Start = Callable[..., Any]


@pytest.fixture(params=["embedded", "remote"])
async def start(request: pytest.FixtureRequest) -> AsyncIterator[Start]:
    """start(sim=..., **settings of the gateway) -> Stack, with two workers."""
    async with AsyncExitStack() as stack:

        async def started(sim: dict[str, Any] = SIM, names: str = "ab", **settings: Any) -> Stack:
            workers = [await stack.enter_async_context(sim_worker(name=n, sim=sim)) for n in names]
            places = [worker.grpc_address for worker in workers]
            embedded = request.param == "embedded"
            main = await stack.enter_async_context(router(places, **(settings if embedded else {})))
            front = main
            if not embedded:
                front = await stack.enter_async_context(gateway(main["grpc"], **settings))
            await healthy(f"http://{front['http']}")
            http = await stack.enter_async_context(aiohttp.ClientSession())
            return Stack(f"http://{front['http']}", f"http://{main['http']}", workers, http)

        yield started


async def events(response: aiohttp.ClientResponse) -> list[Any]:
    assert response.headers["Content-Type"].startswith("text/event-stream")
    found = [line[6:] for line in (await response.text()).split("\n") if line.startswith("data: ")]
    return [json.loads(event) if event != "[DONE]" else event for event in found]


async def soon(condition: Callable[[], bool], within_s: float = 60.0) -> None:
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_a_stream_says_what_the_whole_answer_says(start: Start) -> None:
    fleet = await start()
    whole = await fleet.chat()
    async with fleet.http.post(
        f"{fleet.url}/v1/chat/completions", json=body(stream=True, stream_options={"include_usage": True})
    ) as response:
        *chunks, usage, done = await events(response)
    assert done == "[DONE]"
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    text = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks)
    assert text == whole["choices"][0]["message"]["content"] != ""
    assert chunks[-1]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"] == "length"
    assert usage["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"] == 8
    again = usage["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert again == whole["usage"]["prompt_tokens"] // 16 * 16 > 0  # the same worker, warm by now


async def test_choices_prompts_logprobs_and_echo(start: Start) -> None:
    fleet = await start()
    asked = {
        "prompt": ["Hello world", "foo"],
        "n": 2,
        "echo": True,
        "logprobs": 1,
        "temperature": 1,
        "seed": 3,
        "stop": [f"{letter}\0" for letter in "aest"],  # an end that may become one of them is held back
    }
    answer = await fleet.chat("/v1/completions", **asked)
    assert [c["index"] for c in answer["choices"]] == [0, 1, 2, 3]
    assert answer["usage"]["completion_tokens"] == 4 * 8
    for choice, prompt in zip(answer["choices"], ["Hello world", "Hello world", "foo", "foo"], strict=True):
        shown = choice["logprobs"]
        assert choice["text"].startswith(prompt)
        assert shown["token_logprobs"][0] is None
        assert all(value <= 0 for value in shown["token_logprobs"][1:])
        assert "".join(shown["tokens"])[: len(prompt)] == prompt
        assert shown["text_offset"][0] == 0
    assert answer["choices"][0]["text"] != answer["choices"][1]["text"]
    async with fleet.http.post(f"{fleet.url}/v1/completions", json=body(**asked, stream=True)) as response:
        *chunks, _ = await events(response)
    texts = [""] * 4
    offsets: list[list[int]] = [[] for _ in range(4)]
    for (choice,) in [chunk["choices"] for chunk in chunks]:
        texts[choice["index"]] += choice["text"]
        offsets[choice["index"]] += (choice["logprobs"] or {"text_offset": []})["text_offset"]
    assert texts == [c["text"] for c in answer["choices"]]
    assert offsets == [c["logprobs"]["text_offset"] for c in answer["choices"]]


@pytest.mark.parametrize("fields", [{"echo": True, "max_tokens": 1}, {"max_tokens": 300, "ignore_eos": True}])
async def test_more_scores_than_a_body_may_hold(
    start: Start, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]
) -> None:
    monkeypatch.setattr(job, "MAX_SCORES", 400)
    fleet = await start()
    asked = body(prompt=list(range(300)), logprobs=1) | fields
    async with fleet.http.post(f"{fleet.url}/v1/completions", json=asked) as response:
        assert response.status == 400
        assert (await response.json())["error"]["param"] == "logprobs"
    await soon(lambda: fleet.running() == 0)


def watched(parse: Callable[[bytes], Any], threads: list[threading.Thread]) -> Callable[[bytes], Any]:
    """``parse``, which notes where it runs."""

    def noted(body: bytes) -> Any:
        threads.append(threading.current_thread())
        return parse(body)

    return noted


async def test_long_bodies_are_parsed_off_the_loop(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = await start()
    for name, asked in (("parse_chat", {}), ("parse_completion", {"prompt": "x"})):
        threads: list[threading.Thread] = []
        monkeypatch.setattr(schema, name, watched(getattr(schema, name), threads))
        path = "/v1/completions" if asked else "/v1/chat/completions"
        await fleet.chat(path, **asked)
        await fleet.chat(path, **asked, user="x" * job.INLINE_BYTES)
        assert [thread is threading.current_thread() for thread in threads] == [True, False]


@pytest.mark.parametrize("stream", [True, False])
async def test_an_internal_error_is_told_once(
    start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, stream: bool
) -> None:
    def broken(self: ChoiceText, output: Any) -> Any:
        raise ValueError("a defect")

    caplog.set_level(logging.INFO)
    fleet = await start(SLOW)
    monkeypatch.setattr(ChoiceText, "push", broken)
    async with fleet.http.post(
        f"{fleet.url}/v1/chat/completions", json=body(stream=stream, max_tokens=ENDLESS)
    ) as response:
        assert response.status == (200 if stream else 500)
        (said,) = await events(response) if stream else [await response.json()]
    assert said == {
        "error": {"message": "internal error", "type": "server_error", "param": None, "code": None}
    }
    await soon(lambda: fleet.running() == 0)
    assert "ValueError" in caplog.text
    (line,) = [r.fields for r in caplog.records if r.getMessage() == "request"]  # type: ignore[attr-defined]
    assert line["ending"] == "failed"


async def test_a_stop_string_cuts_the_text_and_frees_the_worker(start: Start) -> None:
    fleet = await start(SLOW)
    text = (await fleet.chat(max_tokens=12))["choices"][0]["message"]["content"]
    stop = text[8:14]
    cut = text[: text.index(stop)]
    answer = await fleet.chat(max_tokens=ENDLESS, stop=stop)
    assert answer["choices"][0] | {"logprobs": 0} == {
        "index": 0,
        "message": {"role": "assistant", "content": cut, "refusal": None},
        "logprobs": 0,
        "finish_reason": "stop",
    }
    await soon(lambda: fleet.running() == 0)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_takes_its_request_along(start: Start, stream: bool) -> None:
    fleet = await start(SLOW)
    asking = asyncio.create_task(fleet.chat(max_tokens=ENDLESS, stream=stream, n=3))
    await soon(lambda: fleet.running() > 0)
    await asyncio.sleep(0.1)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await soon(lambda: fleet.running() == 0)
    async with asyncio.timeout(60):
        while await fleet.bookings():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_client_that_leaves_before_its_first_token(start: Start) -> None:
    fleet = await start(SLOW_PREFILL)
    asking = asyncio.create_task(fleet.chat(stream=True, max_tokens=ENDLESS))
    await soon(lambda: fleet.running() == 1)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await soon(lambda: fleet.running() == 0)  # with the step under way, not 1,000 steps later
    assert sum(w.scheduler.totals.completion_tokens for w in fleet.workers) <= 1


async def test_a_deadline_ends_the_request_and_the_work(start: Start) -> None:
    fleet = await start(SLOW)
    asked = time.monotonic()
    async with fleet.http.post(
        f"{fleet.url}/v1/chat/completions",
        json=body(max_tokens=ENDLESS),
        headers={"X-Request-Timeout-S": "0.3"},
    ) as response:
        assert response.status == 504
        assert (await response.json())["error"]["type"] == "server_error"
        assert response.headers["x-should-retry"] == "false"
    assert time.monotonic() - asked >= 0.2
    await soon(lambda: fleet.running() == 0)
    async with fleet.http.post(
        f"{fleet.url}/v1/chat/completions",
        json=body(max_tokens=ENDLESS, stream=True),
        headers={"X-Request-Timeout-S": "0.3"},
    ) as response:
        assert response.status == 200
        last = (await events(response))[-1]
    assert "deadline" in last["error"]["message"]


async def test_a_client_that_stops_reading_is_cut_off(start: Start) -> None:
    fleet = await start()
    host, _, port = fleet.url.removeprefix("http://").partition(":")
    data = json.dumps(body(max_tokens=2000, n=64, stream=True)).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 << 10)
        client.connect((host, int(port)))
        client.sendall(head + b"Content-Length: %d\r\n\r\n%b" % (len(data), data))
        await soon(lambda: fleet.running() == 1)
        other = await fleet.chat()  # unharmed
        assert other["usage"]["completion_tokens"] == 8
        await soon(lambda: fleet.running() == 0)
    made = sum(w.scheduler.totals.completion_tokens for w in fleet.workers)
    assert made < 64 * 2000


def tenant(name: str, key: str, **more: str) -> dict[str, Any]:
    return {"name": name, "key_sha256": [hashlib.sha256(key.encode()).hexdigest()], **more}


async def test_tenants_need_keys_and_share_nothing_by_default(start: Start) -> None:
    shared = {"salt": "group"}
    keys = [tenant("one", "k1"), tenant("two", "k2"), tenant("three", "k3", **shared)]
    fleet = await start(names="a", tenants=[*keys, tenant("four", "k4", **shared)])

    async def cached(key: str) -> int:
        headers = {"Authorization": f"Bearer {key}"}
        async with fleet.http.post(
            f"{fleet.url}/v1/chat/completions", json=body(), headers=headers
        ) as response:
            assert response.status == 200
            return int((await response.json())["usage"]["prompt_tokens_details"]["cached_tokens"])

    assert [await cached(k) for k in ("k1", "k2", "k3")] == [0, 0, 0]
    assert await cached("k1") > 0
    assert await cached("k4") > 0
    for headers in ({}, {"Authorization": "Bearer k5"}, {"Authorization": "Basic k1"}):
        for path in ("/v1/chat/completions", "/v1/models"):
            method = "GET" if path.endswith("models") else "POST"
            async with fleet.http.request(method, fleet.url + path, headers=headers) as response:
                assert response.status == 401
                assert (await response.json())["error"]["code"] == "invalid_api_key"


async def test_more_than_its_bound_of_requests_is_refused_at_once(start: Start) -> None:
    fleet = await start(SLOW, limits={"in_flight": 2, "drain_s": 0.1})
    asking = [asyncio.create_task(fleet.chat(max_tokens=ENDLESS)) for _ in range(2)]
    await soon(lambda: fleet.running() == 2)
    async with fleet.http.post(f"{fleet.url}/v1/chat/completions", json=body()) as response:
        assert response.status == 503
        assert int(response.headers["Retry-After"]) >= 1
    assert fleet.running() == 2
    for task in asking:
        task.cancel()
    await asyncio.gather(*asking, return_exceptions=True)


async def test_heartbeats_keep_the_booking_of_a_long_answer(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(booking, "BOOKING_TTL_S", 2.0)
    monkeypatch.setattr(service, "BOOKING_HEARTBEAT_S", 0.1)
    fleet = await start(SLOW)
    asking = asyncio.create_task(fleet.chat(max_tokens=300))
    await soon(lambda: fleet.running() == 1)
    while fleet.running():
        assert await fleet.bookings() == 1 or not fleet.running()
        await asyncio.sleep(0.05)
    assert (await asking)["usage"]["completion_tokens"] == 300


async def test_request_ids_and_one_log_line_without_the_prompt(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    fleet = await start()
    caplog.set_level(logging.INFO)
    for offered, kept in (("my-id.7", True), ("x" * 200, False), ("a b", False)):
        async with fleet.http.post(
            f"{fleet.url}/v1/chat/completions",
            json=body(messages=[{"role": "user", "content": "my secret planet"}]),
            headers={"X-Request-Id": offered},
        ) as response:
            assert (response.headers["X-Request-Id"] == offered) == kept
            assert response.headers["X-Warmfleet-Worker"] in ("a", "b")
    lines = [r.fields for r in caplog.records if r.getMessage() == "request"]  # type: ignore[attr-defined]
    assert len(lines) == 3
    assert lines[0]["request_id"] == "my-id.7"
    wanted = "tenant model worker policy terms price_s overlap_available overlap_expected overlap_delivered"
    wanted += " brought queue_s ttft_s e2e_s prompt_tokens completion_tokens ending"
    assert set(wanted.split()) <= set(lines[0])
    assert lines[0]["ending"] == "ok"
    assert "planet" not in caplog.text + str(lines)


async def test_open_streams_may_end_while_the_gateway_drains(start: Start) -> None:
    async with sim_worker(name="c", sim=SLOW) as worker, aiohttp.ClientSession() as http:
        async with router([worker.grpc_address], limits={"drain_s": 5.0}) as main:
            url = f"http://{main['http']}"
            await healthy(url)
            asking = asyncio.create_task(_text(http, url, body(stream=True, max_tokens=30)))
            await soon(lambda: len(worker.scheduler.requests) == 1)
        assert (await asking).endswith("data: [DONE]\n\n")
        with pytest.raises(aiohttp.ClientError):
            await http.get(f"{url}/health")


async def _text(http: aiohttp.ClientSession, url: str, json: dict[str, Any]) -> str:
    async with http.post(f"{url}/v1/chat/completions", json=json) as response:
        return await response.text()


async def test_without_a_worker_it_says_so(start: Start) -> None:
    async with router(["127.0.0.1:1"]) as main, aiohttp.ClientSession() as http:
        url = f"http://{main['http']}"
        async with http.get(f"{url}/health") as response:
            assert response.status == 503
        async with http.post(f"{url}/v1/chat/completions", json=body()) as response:
            assert response.status == 503
            assert "Retry-After" in response.headers


async def test_a_client_is_not_told_where_the_router_is() -> None:
    async with AsyncExitStack() as stack:
        worker = await stack.enter_async_context(sim_worker(name="a", sim=SIM))
        http = await stack.enter_async_context(aiohttp.ClientSession())
        async with router([worker.grpc_address]) as main:
            url = f"http://{(await stack.enter_async_context(gateway(main['grpc'])))['http']}"
            await healthy(url)
        async with http.post(f"{url}/v1/chat/completions", json=body()) as response:
            assert (response.status, "127.0.0.1" in await response.text()) == (503, False)
