"""Plays a workload against an OpenAI-compatible server, each request when it is due, and times the answers.

The load is open-loop: a slow server does not slow the arrivals. Only the next turn of a conversation
waits for the answer to the one before, as a person would.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import msgspec

from loadtest.records import Record
from loadtest.workloads import Turn

CHAT_PATH = "/v1/chat/completions"
TEXT_STREAM = "text/event-stream"


def session(base_url: str) -> aiohttp.ClientSession:
    """Without limits of its own, which would hold requests back here, where nobody measures them."""
    connector = aiohttp.TCPConnector(limit=0)
    return aiohttp.ClientSession(base_url, connector=connector, timeout=aiohttp.ClientTimeout(total=None))


async def play(
    base_url: str, turns: Sequence[Turn], *, model: str, grace: float = 30.0, stream: bool = True
) -> list[Record]:
    """All turns, each at its time; whatever is unfinished ``grace`` seconds after the last is cut off.

    Returns one record a turn, in the order of the workload.
    """
    async with session(base_url) as http:
        run = _Run(http, model, stream)
        tasks = []
        for turn in turns:
            await asyncio.sleep(turn.at - run.now())
            tasks.append(run.start(turn))
        await _settle(tasks, grace)
        return run.cut()


async def _settle(tasks: list[asyncio.Task[None]], grace: float) -> None:
    if not tasks:
        return
    _, late = await asyncio.wait(tasks, timeout=grace)
    for task in late:
        task.cancel()
    await asyncio.gather(*late, return_exceptions=True)
    for task in tasks:
        if task not in late:
            task.result()


@dataclass(slots=True)
class _Run:
    http: aiohttp.ClientSession
    model: str
    stream: bool
    began: float = field(default_factory=time.perf_counter)
    records: list[Record] = field(default_factory=list)
    latest: dict[int, asyncio.Task[None]] = field(default_factory=dict)  # by conversation

    def now(self) -> float:
        return time.perf_counter() - self.began

    def start(self, turn: Turn) -> asyncio.Task[None]:
        record = Record(turn.conversation, turn.at)
        self.records.append(record)
        task = asyncio.create_task(self._take(turn, record, self.latest.get(turn.conversation)))
        self.latest[turn.conversation] = task
        return task

    async def _take(self, turn: Turn, record: Record, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait([before])
        payload = msgspec.json.encode(turn.body(self.model, stream=self.stream))
        record.sent = self.now()
        await ask(self.http, payload, record)

    def cut(self) -> list[Record]:
        for record in self.records:
            if record.sent is not None and record.ttft is None and not record.error:
                record.ttft = self.now() - record.sent
        return self.records


async def ask(http: aiohttp.ClientSession, payload: bytes, record: Record, path: str = CHAT_PATH) -> None:
    """Sends one encoded body, streamed or not, and fills the record in."""
    began = time.perf_counter()
    try:
        async with http.post(path, data=payload, headers={"content-type": "application/json"}) as response:
            record.status = response.status
            record.worker = response.headers.get("X-Warmfleet-Worker", "")
            if response.status != 200:
                record.error = f"HTTP {response.status}: {(await response.text())[:200]}"
            elif response.content_type == TEXT_STREAM:
                await _read_stream(response, record, began)
            else:
                _count(record, msgspec.json.decode(await response.read()).get("usage"))
                record.ttft = time.perf_counter() - began
    except (aiohttp.ClientError, msgspec.DecodeError) as error:
        record.error = f"{type(error).__name__}: {error}"
    record.e2e = time.perf_counter() - began


async def _read_stream(response: aiohttp.ClientResponse, record: Record, began: float) -> None:
    last = began
    async for data in events(response):
        if data == b"[DONE]":
            return
        if record.ttft is None or _is_special(data):  # the many in between are not worth a decode
            chunk = msgspec.json.decode(data)
            _count(record, chunk.get("usage"))
            if "error" in chunk:
                record.error = str(chunk["error"])[:200]
            if not has_text(chunk):
                continue
        now = time.perf_counter()
        if record.ttft is None:
            record.ttft = now - began
        else:
            record.itls.append(now - last)
        last = now
    record.error = record.error or "the stream ended without [DONE]"


def _is_special(data: bytes) -> bool:
    return b'"finish_reason":"' in data or b'"usage":{' in data or data.startswith(b'{"error"')


async def events(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """The data of each server-sent event."""
    async for line in response.content:
        if line.startswith(b"data:"):
            yield line[5:].strip()


def has_text(chunk: dict[str, Any]) -> bool:
    """Whether a streamed chunk of a chat or a completion carries some of the answer."""
    choices = chunk.get("choices") or []
    return any(choice.get("text") or (choice.get("delta") or {}).get("content") for choice in choices)


def _count(record: Record, usage: dict[str, Any] | None) -> None:
    if usage:
        record.prompt_tokens = usage["prompt_tokens"]
        record.completion_tokens = usage.get("completion_tokens", 0)
        record.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
