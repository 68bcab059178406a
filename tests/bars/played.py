"""Replays for the bars: many variants of placement over recorded traces, two at a time."""

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import lru_cache
from itertools import groupby
from math import inf
from pathlib import Path
from typing import NamedTuple

import msgspec
from msgspec.structs import replace
from warmfleet_router.core import RouterCore
from warmfleet_router.policy.base import Ask, Candidate, Choice
from warmfleet_router.policy.cheapest import Cheapest
from warmfleet_router.replay import profile, report
from warmfleet_router.replay.fleet import Fleet, Network, Routers
from warmfleet_router.replay.report import Row
from warmfleet_router.replay.trace import Trace, load
from warmfleet_router.routing import Routing

SHIPPED = Path(__file__).parents[1] / "data"
SHARED = Path(__file__).parents[3] / "shared" / "traces"
CONVERSATION = "mooncake_conversation_blk512.jsonl.gz"
AGENTS = "claude_code_agentic_blk512.jsonl.gz"
TOOLS = "toolagent_like_synthetic_blk512.jsonl.gz"
SESSIONS = "lmcache_agents_blk64.jsonl.gz"

WORKERS = 8
TOKEN_S = 0.025 / 512  # of the flat engine: 25 ms a block of 512
LINK = 12.5e9
BASELINES = ("round_robin", "least_loaded", "two_choices", "prefix_hash", "sglang_threshold", "dynamo_cost")


class Play(NamedTuple):
    """One replay. ``externality`` None: adaptive; ``without`` a term: its seconds count as nothing."""

    trace: str
    speed: float
    policy: str = "cheapest"
    externality: float | None = None
    link: float = 0.0
    capacity: int = 8000
    host: int = 0
    engine: str = "flat"
    limit: int | None = None
    without: str = ""
    decode: bool = False
    pulls: bool = True  # for requests, where there is a link
    replicate: bool = True
    routers: int = 1
    in_turn: bool = False
    delay: float = 0.0  # of presence events
    spaced: bool = False  # requests of one instant come one after the other until the next

    @property
    def place(self) -> str:
        tiers = f"{self.capacity}+{self.host}" if self.host else f"{self.capacity}"
        return f"{self.trace.partition('_blk')[0]} x{self.speed:g} C={tiers} {self.engine}"

    @property
    def label(self) -> str:
        lambda_ = "" if self.externality is None else f", lambda {self.externality:g}"
        pulls = f", {self.link / 1e9:g} GB/s" if self.link else ""
        pulls += ", no pulls" * (not self.pulls) + ", no copies" * (not self.replicate)
        without = f", without {self.without}" if self.without else ""
        turn = " in turn" if self.in_turn else ""
        routers = f", {self.routers} routers{turn}" if self.routers > 1 else ""
        return f"{self.policy}{lambda_}{pulls}{without}{routers}"


def _figures(row: Row) -> str:
    return (
        f"hit {row.hit:.3f} skew {row.skew:.2f} imbalance {row.imbalance:.2f} util {row.utilisation:.2f}"
        f" ttft {row.ttft_mean:7.3f} p99 {row.ttft_p99:7.2f}"
    )


class Without(Cheapest):
    """The price with one term left out; without copies nothing counts as too hot for its holders."""

    def __init__(self, term: str, routing: Routing) -> None:
        super().__init__(0.0 if term == "externality" else None, routing.load_bound, routing.pulls)
        self._term = f"{term}_s"
        self._copies = term != "copies"
        if term == "lateness":
            self.late_s = inf

    def choose(self, ask: Ask, candidates: Sequence[Candidate]) -> Choice:
        if not self._copies:
            ask = replace(ask, outgrown=0.0)
        if self._term not in Candidate._fields:
            return super().choose(ask, candidates)
        cheaper = [c._replace(**{self._term: 0.0}) for c in candidates]
        chosen = super().choose(ask, cheaper)
        whole = candidates[next(i for i, c in enumerate(cheaper) if c is chosen.candidate)]
        return replace(chosen, candidate=whole)


def play(of: Play) -> Row:
    trace = loaded(of.trace, of.limit, of.decode)
    if of.spaced:
        trace = spaced(trace)
    externality = "adaptive" if of.externality is None else of.externality
    routing = Routing(policy=of.policy, externality=externality, pulls=of.pulls, replicate=of.replicate)
    if of.engine == "flat":
        engine = profile.flat(TOKEN_S * trace.block_size, trace.block_size)
    else:
        engine = profile.profile_of(of.engine)
    engine = msgspec.structs.replace(engine, link_bytes_per_s=of.link)
    core = RouterCore(routing, 0)
    if of.without:
        core.policy = Without(of.without, routing)
    fleet = Fleet(
        routing,
        engine,
        trace.block_size,
        [of.capacity] * WORKERS,
        network=Network(of.delay),
        host_blocks=of.host,
        core=core,
        routers=Routers(of.routers, of.in_turn),
    )
    fleet.run(trace, of.speed)
    return report.summarise(of.label, fleet, trace.span_s / of.speed)


@lru_cache(maxsize=2)
def loaded(name: str, limit: int | None, decode: bool) -> Trace:
    path = SHIPPED / name
    trace = load(str(path if path.exists() else SHARED / name), None, limit)
    if decode:
        return trace
    return trace._replace(requests=[r._replace(completion_tokens=1) for r in trace.requests])


def spaced(trace: Trace) -> Trace:
    """Requests that the trace lists at one instant spread evenly until its next one."""
    instants = [list(same) for _, same in groupby(trace.requests, key=lambda r: r.arrival_s)]
    ends = [same[0].arrival_s for same in instants[1:]]
    ends.append(2 * instants[-1][0].arrival_s - instants[-2][0].arrival_s)
    requests = [
        request._replace(arrival_s=request.arrival_s + (end - request.arrival_s) * i / len(same))
        for same, end in zip(instants, ends, strict=True)
        for i, request in enumerate(same)
    ]
    return trace._replace(requests=requests)


def play_all(plays: Sequence[Play], processes: int = 2) -> dict[Play, Row]:
    """Each once; a line as each ends."""
    found: dict[Play, Row] = {}
    with ProcessPoolExecutor(processes) as pool:
        futures = {pool.submit(play, of): of for of in dict.fromkeys(plays)}
        for future in as_completed(futures):
            of, row = futures[future], future.result()
            found[of] = row
            print(f"  {of.place:48} {of.label:34} {_figures(row)}  {len(found)}/{len(futures)}", flush=True)
    return found
