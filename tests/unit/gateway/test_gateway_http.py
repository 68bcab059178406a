"""A connection carries one response a request, whatever fails in the middle of it."""

import asyncio
import logging
from collections.abc import Callable

import pytest
from aiohttp import web
from warmfleet_proto.errors import WorkerLost
from warmfleet_router.gateway.http import Site, application

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
