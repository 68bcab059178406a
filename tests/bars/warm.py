"""Bar 3: on the real model, the TTFT of a 1,000-token prefix hit with 60 new tokens against cold.

At the client, streaming, through gateway and router; the prefix is new in every pair.
"""

import asyncio
import random
from statistics import median

from loadtest.client import play
from loadtest.records import Record
from loadtest.workloads import Message, Turn, message
from tests.bars.fleet import torch_fleet
from tests.bars.rows import Row

PREFIX, NEW, PAIRS, MAX_TOKENS = 1000, 60, 5, 4


def main() -> list[Row]:
    rng = random.Random(3)
    with torch_fleet(workers=1) as fleet:
        asyncio.run(pair(fleet.url, fleet.model, rng))  # the first steps of a process are slow
        pairs = [asyncio.run(pair(fleet.url, fleet.model, rng)) for _ in range(PAIRS)]
    cold = median(first.ttft or 0 for first, _ in pairs)
    warm = median(second.ttft or 0 for _, second in pairs)
    shown = f"{cold / warm:.1f}x ({1e3 * cold:.0f} ms cold, {1e3 * warm:.0f} ms warm)"
    tokens = f"{pairs[-1][1].cached_tokens} of {pairs[-1][1].prompt_tokens} prompt tokens cached"
    return [
        Row("3", f"TTFT cold over warm, medians of {PAIRS}", shown, ">= 4x", cold >= 4 * warm),
        Row("3", "a warm request", tokens, ">= 1000", pairs[-1][1].cached_tokens >= PREFIX),
    ]


async def pair(url: str, model: str, rng: random.Random) -> list[Record]:
    """A prompt with a new prefix, and after its answer another one with the same prefix."""
    system = message(rng, "system", PREFIX + 8)  # the hit is whole blocks of the prefix
    turns = [turn(n, system, message(rng, "user", NEW)) for n in range(2)]
    records = await play(url, turns, model=model)
    for record in records:
        if not record.finished:
            raise RuntimeError(record.error or "not answered in time")
    return records


def turn(number: int, system: Message, question: Message) -> Turn:
    return Turn(0.01 * number, 0, (system, question), number, MAX_TOKENS)
