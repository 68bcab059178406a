"""Seeded traffic that is meant to hurt a cache-aware router, as traces for the replay.

Blocks of 512 tokens; chains of small integers name them, as in recorded traces.
"""

from array import array
from collections.abc import Callable, Iterator
from itertools import accumulate, count
from random import Random
from typing import NamedTuple

from warmfleet_router.replay.trace import Request, Trace

BLOCK = 512  # tokens
BLOCK_S = 0.025  # to compute one
WORKERS = 8
UTILISATION = 0.6  # of what one pooled cache that forgets nothing would load
BLOCKS = 4000  # of a worker's cache, where they are alike
LONGEST = 300_000 // BLOCK
UNRELATED = 48  # prompts of 10 blocks before all else, one every tenth of a second: no fleet is just born
BEFORE_S = 6.0
SLOWER = 5.0

Chain = list[int]


class Case(NamedTuple):
    name: str
    trace: Trace
    capacities: list[int]
    slowness: list[float]


def shared_root(random: Random, requests: int) -> list[Chain]:
    """Conversations that all begin with block 0."""
    return _conversations(random, requests, root=[0])


def nothing_shared(random: Random, requests: int) -> list[Chain]:
    fresh = count(1)
    return [_tail(fresh, min(int(random.lognormvariate(2.5, 1.0)) + 1, 200)) for _ in range(requests)]


def one_tenant(random: Random, requests: int) -> list[Chain]:
    """Nine of ten requests on one prefix of 40 blocks, the others on 50 prefixes of 20."""
    fresh = count(1)
    large, others = _tail(fresh, 40), [_tail(fresh, 20) for _ in range(50)]
    return [
        (large if random.random() < 0.9 else random.choice(others)) + _tail(fresh, random.randint(1, 20))
        for _ in range(requests)
    ]


def all_lengths(random: Random, requests: int) -> list[Chain]:
    """60 prefixes from one block to 300k tokens, unequally popular."""
    fresh = count(1)
    prefixes = [_tail(fresh, round(LONGEST ** (n / 59))) for n in range(60)]
    return _popular(random, requests, prefixes, fresh)


def conversations(random: Random, requests: int) -> list[Chain]:
    return _conversations(random, requests, root=[])


def shifted(random: Random, requests: int) -> list[Chain]:
    """40 prefixes of 30 blocks, and all at once 40 others."""
    fresh = count(1)
    halves = (requests // 2, requests - requests // 2)
    return [
        chain
        for half in halves
        for chain in _popular(random, half, [_tail(fresh, 30) for _ in range(40)], fresh)
    ]


Maker = Callable[[Random, int], list[Chain]]
EVEN = [1.0] * WORKERS
CASES: dict[str, tuple[Maker, list[int], list[float]]] = {
    "all share block 0": (shared_root, [BLOCKS] * WORKERS, EVEN),
    "none share": (nothing_shared, [BLOCKS] * WORKERS, EVEN),
    "one tenant 90 %": (one_tenant, [BLOCKS] * WORKERS, EVEN),
    "1 block to 300k tokens": (all_lengths, [BLOCKS] * WORKERS, EVEN),
    "a worker 5x slower": (conversations, [BLOCKS] * WORKERS, [SLOWER, *EVEN[1:]]),
    "caches of different size": (conversations, [250 * 2 ** (n // 2) for n in range(WORKERS)], EVEN),
    "shift of the hot set": (shifted, [BLOCKS] * WORKERS, EVEN),
}


def case(name: str, seed: int, requests: int) -> Case:
    maker, capacities, slowness = CASES[name]
    random = Random(f"{name} {seed}")
    chains = maker(random, requests)
    duration = _work_s(chains) / (UTILISATION * sum(1 / slow for slow in slowness))
    arrivals = accumulate(random.expovariate(requests / duration) for _ in chains)
    made = [_request(random, BEFORE_S + at, chain) for at, chain in zip(arrivals, chains, strict=True)]
    return Case(name, Trace(name, BLOCK, _unrelated(random) + made), capacities, slowness)


def _unrelated(random: Random) -> list[Request]:
    fresh = count(1 << 40)
    return [_request(random, 0.1 * n, _tail(fresh, 10)) for n in range(UNRELATED)]


def _conversations(random: Random, requests: int, root: Chain) -> list[Chain]:
    """Turns of 1 to 20 blocks on histories; every fifth turn begins a new one, and old ones fall silent."""
    fresh, histories = count(1), list[Chain]()
    chains = []
    for _ in range(requests):
        if not histories or random.random() < 0.2:
            histories = [*histories[-60:], [*root, *_tail(fresh, random.randint(2, 40))]]
        place = random.randrange(len(histories))
        histories[place] = [*histories[place], *_tail(fresh, random.randint(1, 20))]
        chains.append(histories[place])
    return chains


def _popular(random: Random, requests: int, prefixes: list[Chain], fresh: Iterator[int]) -> list[Chain]:
    """Zipf, whatever the lengths, each with a tail of its own."""
    order = random.sample(prefixes, len(prefixes))
    weights = [1 / (rank + 1) for rank in range(len(order))]
    drawn = random.choices(order, weights, k=requests)
    return [prefix + _tail(fresh, random.randint(1, 8)) for prefix in drawn]


def _tail(fresh: Iterator[int], blocks: int) -> Chain:
    return [next(fresh) for _ in range(blocks)]


def _work_s(chains: list[Chain]) -> float:
    return len({key for chain in chains for key in chain}) * BLOCK_S


def _request(random: Random, at: float, chain: Chain) -> Request:
    # ids of the index are 64-bit hashes: spread the small ones over them
    keys = array("Q", (key * 0x9E37_79B9_7F4A_7C15 % 2**64 for key in chain))
    return Request(at, keys, len(chain) * BLOCK + random.randrange(1, BLOCK), 1)
