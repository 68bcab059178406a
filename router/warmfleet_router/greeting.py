"""The two turns of conversation with which ``warmfleet up`` shows that its fleet works.

They go through HTTP as a client's would. The second turn repeats the first, so that its prompt is
found in a worker's cache.
"""

import json
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import aiohttp

_GUIDE = (
    "You are a friendly guide to the cities of Europe. You answer in one or two short and correct "
    "sentences of plain English. You know the history of each city, its famous buildings, its rivers "
    "and bridges, its museums and its food. When a traveller names a country, you speak of its capital. "
    "When a traveller asks what to see, you name one building and say why it is worth the walk."
)
_QUESTIONS = ("What is the capital of France?", "What should I see there first?")
_MAX_TOKENS = 64
_TIMEOUT_S = 120.0  # for a whole answer: a cold first step on a slow machine


class Answer(NamedTuple):
    """One turn as its client saw it."""

    text: str
    prompt_tokens: int
    cached_tokens: int
    ttft_s: float


class Unanswered(Exception):
    """The fleet refused or broke off the first conversation; the message says how."""


async def converse(base: str, show: Callable[[str], None]) -> str:
    """Asks the fleet at ``base`` twice, shows both turns and returns the model's name. Raises Unanswered."""
    messages = [{"role": "system", "content": _GUIDE}]
    timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        model = await _served_model(session, base)
        for question in _QUESTIONS:
            messages.append({"role": "user", "content": question})
            answer = await _ask(session, base, model, messages)
            show(f"\n  you    {question}\n  model  {answer.text}\n         {_figures(answer)}")
            messages.append({"role": "assistant", "content": answer.text})
    return model


def _figures(answer: Answer) -> str:
    return (
        f"prompt {answer.prompt_tokens} tokens, cached {answer.cached_tokens}, "
        f"TTFT {1e3 * answer.ttft_s:.0f} ms"
    )


async def _served_model(session: aiohttp.ClientSession, base: str) -> str:
    """The name of the first model that the fleet serves. Raises Unanswered."""
    try:
        async with session.get(f"{base}/v1/models") as response:
            models = (await response.json())["data"]
            return str(models[0]["id"])
    except (aiohttp.ClientError, TimeoutError, LookupError) as error:
        raise Unanswered(f"no model is served: {type(error).__name__} {error}") from None


async def _ask(
    session: aiohttp.ClientSession, base: str, model: str, messages: list[dict[str, str]]
) -> Answer:
    body = {
        "model": model,
        "messages": messages,
        "max_tokens": _MAX_TOKENS,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    start = time.monotonic()
    first: float | None = None
    pieces: list[str] = []
    usage: dict[str, Any] = {}
    try:
        async with session.post(f"{base}/v1/chat/completions", json=body) as response:
            if response.status != 200:
                raise Unanswered(f"HTTP {response.status}: {await response.text()}")
            async for line in response.content:
                chunk = _chunk(line)
                usage = chunk.get("usage") or usage
                if piece := _piece(chunk):
                    first = first or time.monotonic()
                    pieces.append(piece)
    except (aiohttp.ClientError, TimeoutError) as error:
        raise Unanswered(f"{type(error).__name__} {error}") from None
    if not usage or first is None:
        raise Unanswered("the stream ended without an answer")
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    return Answer("".join(pieces).strip(), usage["prompt_tokens"], cached, first - start)


def _chunk(line: bytes) -> dict[str, Any]:
    """One server-sent event's JSON object; empty for anything else, such as [DONE]."""
    if not line.startswith(b"data: {"):
        return {}
    chunk: dict[str, Any] = json.loads(line[len(b"data: ") :])
    if "error" in chunk:
        raise Unanswered(str(chunk["error"].get("message", chunk["error"])))
    return chunk


def _piece(chunk: dict[str, Any]) -> str:
    return "".join(choice["delta"].get("content") or "" for choice in chunk.get("choices", []))
