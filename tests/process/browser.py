"""Headless Chromium, driven over its own debugging protocol: enough to look at one page."""

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium")

_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-port=0",
)
_START_S = 60.0
_WAIT_S = 60.0


class Page:
    """One open page."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._calls = 0
        self.complaints: list[str] = []  # what the browser's log says: blocked by CSP, failed requests

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._calls += 1
        await self._socket.send_json({"id": self._calls, "method": method, "params": params})
        while True:
            message = await self._socket.receive_json()
            if message.get("method") == "Log.entryAdded":
                self.complaints.append(message["params"]["entry"]["text"])
            if message.get("id") == self._calls:
                assert "error" not in message, message
                result: dict[str, Any] = message["result"]
                return result

    async def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression; a promise is awaited."""
        answer = await self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def text(self, selector: str) -> list[str]:
        """The visible text of every element that matches."""
        found = await self.evaluate(f"[...document.querySelectorAll({selector!r})].map((e) => e.innerText)")
        assert isinstance(found, list)
        return found

    async def wait(self, condition: str) -> None:
        """Until a JavaScript condition holds."""
        look = f"(done) => {{ const look = () => ({condition}) ? done() : setTimeout(look, 20); look(); }}"
        async with asyncio.timeout(_WAIT_S):
            await self.evaluate(f"new Promise({look})")


@asynccontextmanager
async def opened(url: str, profile: Path, width: int = 1280, height: int = 900) -> AsyncIterator[Page]:
    """A browser of its own that shows ``url``; gone when the block ends."""
    assert CHROMIUM is not None
    process = await asyncio.create_subprocess_exec(
        CHROMIUM,
        *_FLAGS,
        f"--user-data-dir={profile}",
        f"--window-size={width},{height}",
        "about:blank",
        stderr=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
        start_new_session=True,
        env={**os.environ, "TMPDIR": "/tmp"},  # its socket's path has to be short
    )
    assert process.stderr is not None
    drain: asyncio.Task[bytes] | None = None
    try:
        base = await _debugger(process.stderr)
        drain = asyncio.create_task(process.stderr.read())
        async with (
            aiohttp.ClientSession() as session,
            session.put(f"{base}/json/new?about:blank") as made,
            session.ws_connect((await made.json())["webSocketDebuggerUrl"]) as socket,
        ):
            page = Page(socket)
            await page.call("Log.enable")
            await page.call("Page.enable")
            await page.call("Page.navigate", url=url)
            yield page
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        if drain is not None:
            await drain


async def _debugger(stderr: asyncio.StreamReader) -> str:
    """The HTTP address of the debugger, which Chromium prints when it listens."""
    said = []
    async with asyncio.timeout(_START_S):
        async for line in stderr:
            said.append(line.decode())
            _, found, url = said[-1].strip().partition("DevTools listening on ws://")
            if found:
                return "http://" + url.partition("/")[0]
    raise AssertionError(f"chromium ended without listening: {''.join(said)}")
