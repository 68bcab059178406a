"""Copies that the router orders though no request waits for them: a real router, gateway and sim workers."""

import asyncio
from pathlib import Path
from typing import Any

from tests.process.test_router_pulls import PREFIX, Running, asked_with, fleet


async def asked(made: Running, question: str) -> str:
    """After 1,600 tokens that all questions share; who answered."""
    return await asked_with(made, 2 * PREFIX, question)


async def moved(made: Running) -> dict[str, Any]:
    """What the page says of the only pair between which something has moved, once it does."""
    async with asyncio.timeout(60):
        while not (pulls := await made.pulls()):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    (pair,) = pulls
    return pair


async def test_a_hot_prefix_is_copied_and_no_request_waits_for_it(tmp_path: Path) -> None:
    """Requests wait at the holder while the other worker is idle: a copy comes by itself."""
    async with fleet(tmp_path, routing={"pulls": False}) as made:
        holder = await asked(made, "Which river is the longest?")
        other = next(name for name in made.workers if name != holder)
        questions = [asked(made, f"Which of them has {n} bridges?") for n in range(8)]
        assert set(await asyncio.gather(*questions)) == {holder}, "computing the prefix again takes longer"
        pair = await moved(made)
        assert (pair["source"], pair["target"], pair["failures"]) == (holder, other, {})
        assert pair["ahead_bytes"] == pair["bytes"] > 0
        assert pair["evacuated_bytes"] == 0
        assert made.workers[other].scheduler.totals.requests == 0
        async with made.busy(holder):
            assert await asked(made, "Which bridge is the highest?") == other
        assert made.workers[other].scheduler.totals.cached_tokens > 1400


async def test_what_a_draining_worker_holds_is_served_warm_by_the_other(tmp_path: Path) -> None:
    async with fleet(tmp_path, routing={"pulls": False}) as made:
        holder = await asked(made, "Which river is the longest?")
        other = next(name for name in made.workers if name != holder)
        assert await asked(made, "Which bridge is the oldest?") == holder
        assert await made.pulls() == [], "an idle holder is enough"
        loop = asyncio.get_running_loop()
        began = loop.time()
        assert await made.workers[holder].drain(60.0) == 0
        assert loop.time() - began < 50, "it goes when nothing more is taken"
        pair = await moved(made)
        assert (pair["source"], pair["target"]) == (holder, other)
        assert pair["evacuated_bytes"] == pair["bytes"] > 0
        await made.workers[holder].close()
        assert await asked(made, "Which bridge is the highest?") == other
        assert made.workers[other].scheduler.totals.cached_tokens > 1400
