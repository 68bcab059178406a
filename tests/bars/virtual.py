"""The live comparison's workloads in virtual time: the same requests, workers' timing and placement code, and
the rules of other routers as policies. Free of the machine's noise, so differences of a percent show.
"""

import sys
from array import array
from collections.abc import Iterator
from functools import lru_cache

import msgspec
from warmfleet_proto.hashing import block_hash, root_hash
from warmfleet_proto.limits import KEY_BYTES, MAX_CHOICES, TOKEN_BYTES
from warmfleet_proto.settings import load as load_settings
from warmfleet_router.replay import report
from warmfleet_router.replay.fleet import Fleet
from warmfleet_router.replay.profile import Profile
from warmfleet_router.replay.trace import Request, Trace
from warmfleet_router.routing import Routing

from loadtest.records import mean, percentile
from loadtest.words import WORDS
from loadtest.workloads import TEMPLATE_TOKENS, Message, Turn
from tests.bars import load
from tests.bars.pooled import Queue

BLOCK = 16
BLOCKS = 4096  # of each worker, as in the live fleet
PROFILE = Profile(
    name="live",
    prefill_token=load.PREFILL_TOKEN_S,
    decode_base=load.STEP_S,
    decode_sequence=load.SEQUENCE_S,
    chunk_tokens=512,
    max_running=MAX_CHOICES,
)
_IDS = {word: number.to_bytes(TOKEN_BYTES, "little") for number, word in enumerate(WORDS)}
_TEMPLATE = (len(WORDS)).to_bytes(TOKEN_BYTES, "little") * TEMPLATE_TOKENS["demo"]


def trace(turns: list[Turn]) -> Trace:
    """As the workers would see it, a token a word."""
    return Trace("live", BLOCK, [_request(turn) for turn in turns])


def play(routing: Routing, workload: Trace, workers: int, seed: int = 0, link: float = 0.0) -> Fleet:
    """``link`` in bytes a second between the workers; 0: nobody pulls."""
    profile = msgspec.structs.replace(PROFILE, link_bytes_per_s=link, kv_bytes_per_token=load.KV_BYTES)
    fleet = Fleet(routing, profile, BLOCK, [BLOCKS] * workers, seed=seed)
    fleet.run(workload)
    return fleet


def _request(turn: Turn) -> Request:
    *shared, last = turn.messages
    keys = array("Q", _keys(tuple(shared), last))
    tokens = sum(len(_TEMPLATE) // TOKEN_BYTES + m.words for m in turn.messages)
    return Request(turn.at, keys, tokens, turn.max_tokens, turn.conversation)


def _keys(shared: tuple[Message, ...], last: Message) -> Iterator[int]:
    known, parent, rest = _chained(shared)
    yield from known
    yield from _blocks(parent, rest + _packed(last))[0]


@lru_cache(maxsize=4096)
def _chained(messages: tuple[Message, ...]) -> tuple[tuple[int, ...], bytes, bytes]:
    """Keys of the full blocks, the last of their hashes, and the tokens of a block begun."""
    if not messages:
        return (), root_hash(b"live", BLOCK), b""
    *before, last = messages
    known, parent, rest = _chained(tuple(before))
    keys, parent, rest = _blocks(parent, rest + _packed(last))
    return (*known, *keys), parent, rest


def _blocks(parent: bytes, ids: bytes) -> tuple[list[int], bytes, bytes]:
    size, keys, start = BLOCK * TOKEN_BYTES, [], 0
    while start + size <= len(ids):
        parent = block_hash(parent, ids[start : start + size])
        keys.append(int.from_bytes(parent[:KEY_BYTES], "little"))
        start += size
    return keys, parent, ids[start:]


def _packed(message: Message) -> bytes:
    return _TEMPLATE + b"".join([_IDS[word] for word in message.content.split()])


def main(argv: list[str]) -> None:
    """``python -m tests.bars.virtual POLICY[,KEY=VALUE...]...``: a table for each live case."""
    from tests.bars.live_vs_sglang import CASES, WORKERS

    for case, seed in ((each, seed) for each in CASES for seed in each.seeds):
        workload = trace(case.turns(seed))
        rows = []
        for named in argv or ["cheapest", "sglang_threshold", "dynamo_cost", "prefix_hash", "round_robin"]:
            policy, *settings = named.split(",")
            routing = load_settings(Routing, None, [*settings, f"policy={policy}"])
            fleet = play(routing, workload, WORKERS, link=load.LINK_BYTES_PER_S * case.link)
            rows.append(report.summarise(named, fleet, workload.span_s))
        print(f"\n{case}, seed {seed}, {len(workload.requests)} requests")
        print(report.table(rows, report.bounds(workload, BLOCKS * WORKERS)), flush=True)
        print(one_queue(workload, WORKERS), flush=True)


def one_queue(workload: Trace, workers: int) -> str:
    queue = Queue(PROFILE, BLOCK, workers)
    queue.run(workload)
    ttfts = queue.ttfts
    shown = f"mean {mean(ttfts):.3f}, p50 {percentile(ttfts, 0.5):.3f}, p99 {percentile(ttfts, 0.99):.3f} s"
    return f"one queue over a pooled cache, first come, first served: {shown}"


if __name__ == "__main__":
    main(sys.argv[1:])
