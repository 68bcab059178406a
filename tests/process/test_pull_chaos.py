"""Two small workers that pull from each other while everything goes wrong, by seed.

Pools are so small that pulled blocks displace others and lent ones are wanted; leases end early, answers are
damaged, lost and late, requests leave. Every answer that is given is the oracle's, and every pool balances.
"""

import asyncio
import random
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from warmfleet_proto.worker_pb2 import Ending
from warmfleet_worker.transfer import frames
from warmfleet_worker.transfer.transport import Parcel

from tests.process.exchange import End, pair, pull_of
from tests.process.gateway import expected
from tests.process.test_pull_faults import at_rest, flipped, spoil, swapped, truncated

SEEDS = 20
REQUESTS, TOKENS = 40, 3
STEMS = 4  # prompts share their beginnings
BLOCKS = 96  # of each pool


class Chaos:
    """What befalls the blocks that one worker gives."""

    def __init__(self, rng: random.Random, end: End) -> None:
        self._rng = rng
        self._leases, self._now = end.worker.exchange.leases, end.worker.runner.now

    def __call__(self, size: int, parcel: Parcel) -> Parcel | None:
        chance = self._rng.random()
        if chance < 0.35:
            return self._rng.choice([flipped, swapped, truncated])(size, parcel)
        if chance < 0.4:
            raise RuntimeError("the source's thread dies")
        if chance < 0.5:
            self._leases.expire(self._now() + 1000)
        return None if chance < 0.55 else parcel


def prompt_of(rng: random.Random) -> list[int]:
    stem = rng.randrange(STEMS)
    return [*range(stem * 1000, stem * 1000 + rng.randrange(20, 500)), rng.randrange(30_000)]


class Asked(NamedTuple):
    of: End
    handle: int
    prompt: list[int]

    async def answered(self) -> None:
        ending = await self.of.gateway.end(self.handle)
        answer = self.of.gateway.tokens.get((self.handle, 0), [])
        right = expected(self.of.worker, self.prompt, TOKENS)
        assert answer == right[: len(answer)]
        assert answer == right or ending.reason == Ending.CANCELLED


async def ask(rng: random.Random, ends: tuple[End, End], handle: int) -> Asked:
    """One of the two, with a pull from the other more often than not; some leave."""
    here, there = rng.sample(ends, 2)
    asked, pull = Asked(here, handle, prompt_of(rng)), None
    if rng.random() < 0.8:
        patience, name = rng.choice([0.0, 0.01, 1.0, 1.0, 1.0]), here.worker.config.name
        pull = pull_of(there.worker, asked.prompt, within_s=patience, target=name)
        if rng.random() < 0.1:
            pull.address = "127.0.0.1:1"
    await here.gateway.submit(handle, asked.prompt, TOKENS, pull=pull)
    if rng.random() < 0.15:
        await here.gateway.send(cancel={"handle": handle})
    return asked


@pytest.mark.parametrize("seed", range(SEEDS))
async def test_whatever_happens_answers_are_right_and_pools_balance(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(seed)
    monkeypatch.setattr(frames, "PIECE_BLOCKS", 4)
    settings: dict[str, Any] = {"host_bytes": BLOCKS * 128} if seed % 2 else {}
    settings["transfer"] = {"transports": [["tcp"], ["shm"], ["tcp", "shm"]][seed % 3]}
    async with pair(tmp_path, total_blocks=BLOCKS, chunk_tokens=64, **settings) as ends:
        for end in ends:
            spoil(end.worker, Chaos(rng, end))
        handles = iter(range(1, REQUESTS + 1))
        while batch := [await ask(rng, ends, handle) for handle in islice(handles, rng.randrange(1, 6))]:
            await asyncio.gather(*(asked.answered() for asked in batch))
        for end in ends:
            end.worker.exchange.leases.expire(end.worker.runner.now() + 1000)
        await at_rest(*ends)
