"""Caches that hold a few of many long prefixes: what is brought displaces what others need."""

from array import array
from functools import lru_cache
from random import Random

import msgspec
import pytest
from warmfleet_router.replay import report
from warmfleet_router.replay.fleet import Fleet
from warmfleet_router.replay.profile import Profile
from warmfleet_router.replay.trace import Request, Trace
from warmfleet_router.routing import Routing

BLOCK = 64
BLOCKS = 1024  # of each worker: five prefixes
WORKERS = 8
PROFILE = Profile(prefill_token=0.5e-3, decode_base=20e-3, chunk_tokens=512)


@lru_cache
def agents(seed: int, requests: int = 700, per_s: float = 14.0) -> Trace:
    """On two dozen prefixes of 2,000 to 24,000 tokens, asked for by Zipf's law, from cold."""
    random, made, now = Random(seed), [], 0.0
    lengths = [(2_000 + 22_000 * n // 23) // BLOCK for n in range(24)]
    prefixes = [[1000 * n + i for i in range(length)] for n, length in enumerate(lengths)]
    random.shuffle(prefixes)
    for number in range(requests):
        now += random.expovariate(per_s)
        prefix = random.choices(prefixes, [1 / (rank + 1) for rank in range(24)])[0]
        own = [100_000 + 100 * number + i for i in range(random.randrange(3, 14))]
        keys = array("Q", [*prefix, *own])
        made.append(Request(now, keys, len(keys) * BLOCK + 1, 16))
    return Trace("agents", BLOCK, made)


def played(trace: Trace, link: float = 12.5e9, **routing: bool) -> report.Row:
    profile = msgspec.structs.replace(PROFILE, link_bytes_per_s=link)
    fleet = Fleet(Routing(**routing), profile, BLOCK, [BLOCKS] * WORKERS)
    fleet.run(trace)
    assert all(m.worker.cache.available == BLOCKS for m in fleet.members), "nothing stays pinned"
    return report.summarise("", fleet, trace.span_s)


@pytest.mark.parametrize("seed", [1, 6])
def test_what_may_be_moved_makes_nothing_worse(seed: int) -> None:
    """It was four times as long, and twelve."""
    trace = agents(seed)
    still = played(trace, link=0.0).ttft_mean
    for routing in ({"replicate": False}, {"pulls": False}, {}):
        assert played(trace, **routing).ttft_mean <= 1.02 * still, routing
