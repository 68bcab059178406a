"""A connection carries one response a request, whatever fails in the middle of it."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import web
from warmfleet_proto.errors import WorkerLost
from warmfleet_router.gateway import http
from warmfleet_router.gateway.http import Events, Site, application
from warmfleet_router.gateway.outlet import Outlet
from warmfleet_router.gateway.record import Record
from warmfleet_router.metrics import Metrics

FAILURES = [RuntimeError("broken"), WorkerLost("gone"), web.HTTPNotFound()]


async def said(handler: Callable[[web.Request], object]) -> bytes:
    """Every byte that a client of ``handler`` gets until the connection ends."""
    app = application()
    app.router.add_get("/", handler)  # type: ignore[arg-type]
    site = Site(app, "127.0.0.1:0")
    _, _, port = (await site.start()).rpartition(":")
    reader, writer = await asyncio.open_connection("127.0.0.1", int(port))
    received = b""
    try:
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        async with asyncio.timeout(5):
            while data := await reader.read(1 << 16):
                received += data
    except ConnectionResetError:
        pass
    finally:
        writer.close()
        await site.close()
    return received


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
async def test_a_response_that_has_begun_is_cut_off(
    failure: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"data: 1")
        raise failure

    received = await said(handler)
    assert received.count(b"HTTP/1.1") == 1
    assert received.endswith(b"\r\n7\r\ndata: 1\r\n")  # nor does it seem whole
    assert "failed within its response" in caplog.text


@pytest.mark.parametrize(("failure", "status"), [*zip(FAILURES, (500, 502, 404), strict=True)])
async def test_one_that_has_not_is_answered(failure: Exception, status: int) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        raise failure

    received = await said(handler)
    assert received.startswith(b"HTTP/1.1 %d " % status)
    assert b'{"error":' in received
    assert (b"path: '/' is not served here" in received) is (status == 404)


class Counted:
    """A transport that keeps what is written to it, write by write."""

    def __init__(self, transport: Any) -> None:
        self.written: list[bytes] = []
        self._transport = transport

    def write(self, data: bytes) -> None:
        self.written.append(bytes(data))
        self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


@pytest.mark.parametrize("first", [b"data: 1\n\n", b""])
async def test_a_streams_headers_go_out_with_its_first_event(first: bytes) -> None:
    kept: list[bytes] = []
    record = Record(Metrics(), "r", 0.0)

    async def handler(request: web.Request) -> web.StreamResponse:
        counted = Counted(request.transport)
        request.protocol.transport = counted  # type: ignore[assignment]
        response = Events()
        writer = await response.prepare(request)
        assert writer is not None
        outlet = Outlet(request, writer, record, lambda: 1.0)
        await outlet.begin(first)
        kept.extend(counted.written)
        outlet.take(b"data: 2\n\n")
        return response

    received = await said(handler)
    (written,) = kept
    assert written.startswith(b"HTTP/1.1 200 OK\r\n")
    assert written.endswith(b"\r\n9\r\n" + first + b"\r\n" if first else b"\r\n\r\n")
    assert received.endswith(b"9\r\ndata: 2\n\n\r\n0\r\n\r\n")
    assert record.completion_tokens == 1 + bool(first)


async def test_a_used_connection_outlives_one_that_has_asked_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients keep theirs for longer than a new one may be silent; one that stopped within a head is that."""
    monkeypatch.setattr(http, "_IDLE_S", 0.1)

    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(text="here")

    app = application()
    app.router.add_get("/", handler)
    site = Site(app, "127.0.0.1:0")
    _, _, port = (await site.start()).rpartition(":")
    used, silent, halfway = [await asyncio.open_connection("127.0.0.1", int(port)) for _ in range(3)]
    try:
        async with asyncio.timeout(5):
            for _ in range(2):
                used[1].write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                assert (await used[0].readuntil(b"here")).startswith(b"HTTP/1.1 200")
                halfway[1].write(b"GET /")
                for reader, _ in (silent, halfway):
                    assert await reader.read() == b""
    finally:
        for _, writer in (used, silent, halfway):
            writer.close()
        await site.close()
