"""The two turns of conversation with which ``warmfleet up`` shows that its fleet works.

They go through HTTP as a client's would. The second turn repeats the first, so that its prompt is
found in a worker's cache.
"""

import json
import textwrap
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import aiohttp

# Long enough that a partial last block is less than a tenth of it.
_TEACHER = (
    "You are a patient science teacher who explains the world to curious children. You answer every "
    "question in plain English, in short and correct sentences, and you explain one thing at a time. You "
    "begin with what can be seen, then say what causes it, and you give one example from daily life. You "
    "avoid long words; where one is needed, you say what it means. You never make up numbers, names or "
    "dates. When a question follows from the one before, you build on what has been said already. When a "
    "question is about light, you speak of the sun, the air and the colours. When it is about water, you "
    "speak of rain, rivers, ice and the sea. When it is about the stars, you speak of the night sky and of "
    "how far away they are. You end when the question is answered."
)
_QUESTIONS = ("Why is the sky blue?", "And why is it red at sunset?")
_MAX_TOKENS = 48
_TIMEOUT_S = 120.0  # for a whole answer: a cold first step on a slow machine


class Answer(NamedTuple):
    """One turn as its client saw it."""

    text: str
    prompt_tokens: int
    cached_tokens: int
    ttft_s: float
    cut: bool  # at max_tokens


class Unanswered(Exception):
    """The fleet refused or broke off the first conversation; the message says how."""


async def converse(base: str, model: str, show: Callable[[str], None]) -> None:
    """Asks the fleet at ``base`` twice and shows both turns. Raises Unanswered."""
    messages = [{"role": "system", "content": _TEACHER}]
    timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        for question in _QUESTIONS:
            messages.append({"role": "user", "content": question})
            answer = await _ask(session, base, model, messages)
            show(f"\n  you    {question}\n{_wrapped(answer)}\n         {_figures(answer)}")
            messages.append({"role": "assistant", "content": answer.text})


def _wrapped(answer: Answer) -> str:
    text = f"  model  {answer.text}{' ...' if answer.cut else ''}"
    return textwrap.fill(text, 100, subsequent_indent=" " * 9)


def _figures(answer: Answer) -> str:
    return (
        f"prompt {answer.prompt_tokens} tokens, cached {answer.cached_tokens}, "
        f"TTFT {1e3 * answer.ttft_s:.0f} ms"
    )


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
    cut = False
    try:
        async with session.post(f"{base}/v1/chat/completions", json=body) as response:
            if response.status != 200:
                raise Unanswered(f"HTTP {response.status}: {await response.text()}")
            async for line in response.content:
                chunk = _chunk(line)
                usage = chunk.get("usage") or usage
                cut = cut or _is_cut(chunk)
                if piece := _piece(chunk):
                    first = first or time.monotonic()
                    pieces.append(piece)
    except (aiohttp.ClientError, TimeoutError) as error:
        raise Unanswered(f"{type(error).__name__} {error}") from None
    if not usage or first is None:
        raise Unanswered("the stream ended without an answer")
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    return Answer("".join(pieces).strip(), usage["prompt_tokens"], cached, first - start, cut)


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


def _is_cut(chunk: dict[str, Any]) -> bool:
    return any(choice.get("finish_reason") == "length" for choice in chunk.get("choices", []))
