"""Servers that answer badly: each failure is bounded, named, and no other request suffers from it."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import aiohttp
import pytest
from warmfleet_router.fleet.fleet import EJECT_AFTER
from warmfleet_router.servers.sse import MAX_EVENT_BYTES

from tests.process import gateways
from tests.process.gateways import one_tokenizer  # noqa: F401
from tests.process.test_servers import CHAT, LONG, until

EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"x"}}]}\n\n'
MODELS = b'{"object":"list","data":[{"id":"tiny","max_model_len":4096}]}'
ROBIN = {"policy": "round_robin"}
Behave = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def head(status: str = "200 OK", kind: str = "text/event-stream", **more: Any) -> bytes:
    fields = {"Content-Type": kind, **more}
    lines = [f"HTTP/1.1 {status}", *(f"{k.replace('_', '-')}: {v}" for k, v in fields.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def whole(body: bytes, kind: str = "application/json", status: str = "200 OK") -> bytes:
    return head(status, kind, Content_Length=len(body)) + body


class Server:
    """Says that it serves ``tiny``, and answers chats as ``behave`` does, one to a connection."""

    def __init__(self, behave: Behave) -> None:
        self.asked = 0
        self.left = asyncio.Event()  # a client has closed its connection
        self._behave = behave

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                request = await reader.readuntil(b"\r\n\r\n")
                path = request.split(b" ", 2)[1]
                if path == CHAT.encode():
                    self.asked += 1
                    await self._behave(reader, writer)
                    break
                body = MODELS if path == b"/v1/models" else b""
                writer.write(whole(body))
                await writer.drain()
        self.left.set()
        writer.close()


@asynccontextmanager
async def fleet(*behaviours: Behave) -> AsyncIterator[tuple[str, list[Server], aiohttp.ClientSession]]:
    async with AsyncExitStack() as stack:
        servers, backends = [Server(behave) for behave in behaviours], []
        for server in servers:
            listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
            stack.callback(listening.close)
            backends.append({"url": f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"})
        addresses = await stack.enter_async_context(gateways.router([], backends=backends, routing=ROBIN))
        base = f"http://{addresses['http']}"
        http = await stack.enter_async_context(aiohttp.ClientSession())

        async def all_there() -> bool:
            async with http.get(f"{base}/admin/workers") as response:
                workers = (await response.json())["workers"]
            return all(worker["state"] == "healthy" for worker in workers)

        await gateways.healthy(base)
        await until(all_there)
        yield base, servers, http


async def ask(http: aiohttp.ClientSession, base: str, **more: Any) -> tuple[int, bytes]:
    headers = more.pop("headers", {})
    body = {"model": "tiny", "messages": LONG, "stream": True} | more
    async with http.post(base + CHAT, json=body, headers=headers) as response:
        return response.status, await response.content.read()


def says(*parts: bytes) -> Behave:
    async def behave(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for part in parts:
            writer.write(part)
            await writer.drain()

    return behave


async def says_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def good(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(head() + EVENT + b"data: [DONE]\n\n")
    await writer.drain()


BEFORE_ITS_FIRST_TOKEN = {
    "closes": says(),
    "wrong content type": says(whole(b"<html>hello</html>", "text/html")),
    "an error in a 200": says(whole(b'{"error":{"message":"no"}}')),
    "an error as the first event": says(head(), b'data: {"error":{"message":"no"}}\n\n'),
    "another key": says(whole(b'{"error":"Unauthorized"}', status="401 Unauthorized")),
    "500": says(whole(b"oops", status="500 Internal Server Error")),
    "redirect": says(head("302 Found", Location="/v1/models", Content_Length=0)),
    "no HTTP": says(b"\x00\x01\x02 hello\r\n\r\n"),
    "huge header": says(b"HTTP/1.1 200 OK\r\nX: " + b"x" * (1 << 20) + b"\r\n\r\n"),
    "an event without end": says(head(), b"data: " + b"x" * (MAX_EVENT_BYTES + 100_000)),
    "an end before the first event": says(head(), b"data: {"),
    "busy": says(whole(b"later", status="503 Service Unavailable")),
}  # fmt: skip


@pytest.mark.parametrize("behave", BEFORE_ITS_FIRST_TOKEN.values(), ids=BEFORE_ITS_FIRST_TOKEN)
async def test_before_its_first_token_another_server_is_asked(behave: Behave) -> None:
    async with fleet(behave, good) as (base, servers, http):
        for _ in range(4):
            status, body = await ask(http, base)
            assert (status, body) == (200, EVENT + b"data: [DONE]\n\n")
        assert servers[0].asked
        assert servers[1].asked == 4


@pytest.mark.parametrize("behave", BEFORE_ITS_FIRST_TOKEN.values(), ids=BEFORE_ITS_FIRST_TOKEN)
async def test_without_another_the_client_is_told(behave: Behave) -> None:
    async with fleet(behave) as (base, _, http):
        status, body = await ask(http, base)
        assert status == (503 if behave is BEFORE_ITS_FIRST_TOKEN["busy"] else 502)
        assert b'"error"' in body
        assert b"127.0.0.1" not in body


async def test_without_another_a_servers_own_refusal_is_passed_on() -> None:
    """It knows when it will have room."""
    told = head("429 Too Many Requests", "application/json", Retry_After=7, Content_Length=5) + b"later"
    async with fleet(says(told), says(told)) as (base, _, http):
        body = {"model": "tiny", "messages": LONG}
        async with http.post(base + CHAT, json=body) as response:
            assert (response.status, response.headers["Retry-After"]) == (429, "7")


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_a_count_beyond_all_sense_keeps_no_booking(stream: bool) -> None:
    usage = b'"usage":{"prompt_tokens":%d,"completion_tokens":%d}' % (1 << 40, 1 << 40)
    event, body = b'data: {"choices":[],' + usage + b"}\n\n", b'{"choices":[],' + usage + b"}"
    behave = says(head() + EVENT + event + b"data: [DONE]\n\n" if stream else whole(body))
    async with fleet(behave) as (base, _, http):
        status, said = await ask(http, base, stream=stream)
        assert (status, said) == (200, EVENT + b"data: [DONE]\n\n" if stream else body)

        async def all_ended() -> bool:
            async with http.get(f"{base}/admin/workers") as response:
                return bool((await response.json())["fleet"]["bookings"] == 0)

        await until(all_ended)


BREAKS_OFF = says(head(), EVENT, EVENT[:20])
QUARANTINED = {
    **{
        name: BEFORE_ITS_FIRST_TOKEN[name]
        for name in ("wrong content type", "an error in a 200", "huge header")
    },
    "an event without end": BEFORE_ITS_FIRST_TOKEN["an event without end"],
    "a stream that breaks off": BREAKS_OFF,
    "slow headers": says_nothing,
}


@pytest.mark.parametrize("behave", QUARANTINED.values(), ids=QUARANTINED)
async def test_one_that_goes_on_like_that_is_left_out(
    behave: Behave, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is ejected, and named: in the log with what it did, on the page with how often."""
    monkeypatch.setattr("warmfleet_router.gateway.relay.SILENT_S", 0.05)
    caplog.set_level("INFO")
    async with fleet(behave, good) as (base, servers, http):
        headers = {"X-Request-Timeout-S": "1", "Connection": "close"}
        for _ in range(2 * EJECT_AFTER):
            await ask(http, base, headers=headers)
        shown: list[dict[str, Any]] = []

        async def ejected() -> bool:
            async with http.get(f"{base}/admin/workers") as response:
                shown[:] = (await response.json())["workers"]
            return [worker["state"] for worker in shown] == ["ejected", "healthy"]

        await until(ejected)
        bad = shown[0]
        assert bad["dropped"] >= EJECT_AFTER
        asked = servers[0].asked
        for _ in range(4):
            assert (await ask(http, base))[0] == 200
        assert servers[0].asked == asked
    named = [fields for record in caplog.records if "why" in (fields := getattr(record, "fields", {}))]
    # On a busy machine the good one may miss such a deadline once, too.
    assert sum(fields["worker"] == bad["worker"] for fields in named) >= EJECT_AFTER
    assert all(fields["why"] for fields in named)


async def test_a_stream_that_breaks_off_ends_with_an_error() -> None:
    async with fleet(BREAKS_OFF) as (base, _, http):
        status, body = await ask(http, base)
        assert status == 200
        assert body.startswith(EVENT)
        assert b'"error"' in body
        assert b"[DONE]" not in body


async def test_an_event_that_grows_too_long_ends_the_stream() -> None:
    async with fleet(says(head(), EVENT, b"data: " + b"x" * (MAX_EVENT_BYTES + 100_000))) as (base, _, http):
        status, body = await ask(http, base)
        assert status == 200
        assert len(body) < 10_000
        assert b'"error"' in body


async def test_an_error_of_the_servers_own_is_passed_on_once() -> None:
    event, heard = b'data: {"error":{"message":"out of memory"}}\n\n', asyncio.Event()

    async def fails(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(head() + EVENT)
        await heard.wait()
        writer.write(event)
        await writer.drain()

    async with fleet(fails) as (base, _, http):
        body = {"model": "tiny", "messages": LONG, "stream": True}
        async with http.post(base + CHAT, json=body) as response:
            assert await response.content.readexactly(len(EVENT)) == EVENT
            heard.set()
            assert await response.content.read() == event


async def test_slow_headers_end_at_the_clients_deadline() -> None:
    async with fleet(says_nothing) as (base, servers, http):
        began = time.monotonic()
        status, _ = await ask(http, base, headers={"X-Request-Timeout-S": "0.5"})
        assert status == 504
        assert time.monotonic() - began < 20, "that of a server is half a minute"
        async with asyncio.timeout(60):
            await servers[0].left.wait()


async def test_a_silent_stream_ends_at_the_clients_deadline() -> None:
    async def stalls(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(head() + EVENT)
        await reader.read()

    async with fleet(stalls) as (base, servers, http):
        status, body = await ask(http, base, headers={"X-Request-Timeout-S": "0.5"})
        assert status == 200
        assert b'"error"' in body
        async with asyncio.timeout(60):
            await servers[0].left.wait()


async def test_a_body_without_end_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("warmfleet_router.gateway.relay.MAX_BODY_BYTES", 1 << 20)
    async with fleet(says(head(kind="application/json"), *[b" " * 65536] * 40)) as (base, _, http):
        status, _ = await ask(http, base, stream=False)
        assert status in (502, 503)


@pytest.mark.parametrize("kind", ["text/charset", "", "nonsense"])
async def test_any_content_type_is_passed_on(kind: str) -> None:
    async with fleet(says(whole(b"no", kind, "400 Bad Request"))) as (base, _, http):
        assert await ask(http, base) == (400, b"no")


async def test_a_client_that_does_not_read_holds_the_server_up() -> None:
    """Back-pressure: what the gateway takes ahead is bounded by its buffers."""
    taken = 0

    async def floods(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal taken
        writer.write(head())
        while True:
            writer.write(EVENT * 1000)
            await writer.drain()
            taken += 1000 * len(EVENT)

    async with fleet(floods) as (base, servers, http):
        body = {"model": "tiny", "messages": LONG, "stream": True}
        async with http.post(base + CHAT, json=body) as response:
            await response.content.readany()
            before = -1
            while taken != before:  # until nothing moves any more
                before = taken
                await asyncio.sleep(0.3)
            assert taken < 32 << 20
            response.close()
        async with asyncio.timeout(60):
            await servers[0].left.wait()
