"""Issue 3, bar 6: eight sim workers live, agents and chats, at .7 and .35 of a pooled cache's load.

Side by side with ``sglang-router --policy cache_aware`` over the same kind of workers, each way with a
fleet of its own that starts cold and sees the same requests at the same times. Agents at .7 are six
workloads, taken together: which of 24 prefixes comes first, and beside which other it falls, is luck that
decides a single one. Chats at .7 once more with a link between the workers, which only our router makes use
of. ``LIVE_SECONDS`` in the environment shortens a run, ``LIVE_CASES`` names what to run.
"""

import asyncio
import os
from collections.abc import Sequence
from typing import NamedTuple

from loadtest.client import play
from loadtest.records import Record, mean, summarise
from loadtest.workloads import AgentShape, ChatShape, Turn, agent, chat, offered
from tests.bars import load
from tests.bars.fleet import Fleet, sim_fleet
from tests.bars.peers import sglang
from tests.bars.rows import Row
from tests.bars.sharing import shown

WORKERS = 8
SECONDS = float(os.environ.get("LIVE_SECONDS", "150"))
AGENT = AgentShape(question=500, max_tokens=16)
CHAT = ChatShape(system=300, question=300, answer=150, max_tokens=16, turns=6)


class Case(NamedTuple):
    workload: str
    utilisation: float
    seeds: tuple[int, ...] = (6,)
    link: bool = False  # of 12.5 GB/s between the workers

    def __str__(self) -> str:
        return f"{self.workload} at {self.utilisation}{' with a link' * self.link}"

    def turns(self, seed: int) -> list[Turn]:
        def at_rate(rate: float) -> list[Turn]:
            if self.workload == "agent":
                return agent(rate, SECONDS, seed, AGENT)
            return chat(rate, SECONDS, seed, CHAT)

        return load.at(self.utilisation, WORKERS, SECONDS, at_rate)


class Outcome(NamedTuple):
    records: list[Record]
    skew: float  # the busiest worker's uncached prompt tokens over the mean
    cpu_ms: float  # of the router, a request


CASES = [
    Case("agent", 0.7, (1, 2, 3, 4, 5, 6)),
    Case("chat", 0.7),
    Case("chat", 0.7, link=True),
    Case("agent", 0.35),
    Case("chat", 0.35),
]


def main() -> list[Row]:
    named = os.environ.get("LIVE_CASES", "").split(",")
    return [row for case in CASES if named == [""] or str(case) in named for row in side_by_side(case)]


def side_by_side(case: Case) -> list[Row]:
    peers, ours = [], []
    for seed in case.seeds:
        turns = case.turns(seed)
        bound = offered(turns).hit_rate
        print(f"   {case}, seed {seed}: {len(turns)} requests, infinite cache {bound:.3f}")
        peers.append(run("sglang-router", turns, case.link))
        ours.append(run("cheapest", turns, case.link))
    return compare(case, together(ours), together(peers))


def together(outcomes: Sequence[Outcome]) -> Outcome:
    records = [record for outcome in outcomes for record in outcome.records]
    return Outcome(records, mean([o.skew for o in outcomes]), mean([o.cpu_ms for o in outcomes]))


def run(way: str, turns: list[Turn], linked: bool = False) -> Outcome:
    ours = way != "sglang-router"
    link = load.LINK_BYTES_PER_S / load.KV_BYTES if linked else 0.0
    with sim_fleet(WORKERS, policy=way if ours else "round_robin", link=link) as fleet:
        program, url = (fleet.router, fleet.url) if ours else sglang(fleet.starter, fleet.faces)
        before = program.cpu_s()
        records = asyncio.run(play(url, turns, model=fleet.model))
        cpu_ms = 1e3 * (program.cpu_s() - before) / len(turns)
        outcome = Outcome(records, skew(uncached(fleet)), cpu_ms)
    figures = f"{shown(summarise(records))}, skew {outcome.skew:.2f}"
    print(f"   {way:14} {figures}, router CPU {cpu_ms:.1f} ms a request")
    return outcome


def skew(work: Sequence[float]) -> float:
    return max(work) * len(work) / max(1e-9, sum(work))


def uncached(fleet: Fleet) -> list[float]:
    """Prompt tokens that each worker had to compute."""
    return [count.prompt - count.cached for count in fleet.counts()]


def compare(case: Case, ours: Outcome, peer: Outcome) -> list[Row]:
    busy = case.utilisation > 0.5
    most = 0.6 if busy and case.workload == "agent" else 1.0
    a, b = summarise(ours.records), summarise(peer.records)
    rows = [
        under(case, "TTFT mean", a.ttft_mean, b.ttft_mean, most),
        under(case, "TTFT p99", a.ttft_p99, b.ttft_p99, most),
        at_least(case, "hit rate", a.hit_rate, b.hit_rate - (0.0 if busy else 0.03)),
        at_least(case, "finished", a.finished, b.finished),
    ]
    return rows if busy else [*rows, under(case, "skew", ours.skew, peer.skew, 1.0)]


def under(case: Case, what: str, ours: float, peer: float, most: float) -> Row:
    wanted = f"<= {most:.1f}x" if most < 1 else "lower"
    figure = f"{ours:.3f} / {peer:.3f}, {ours / max(1e-9, peer):.2f}x"
    ok = ours <= most * peer if most < 1 else ours < peer
    return Row("3.6", f"{case}: {what}, ours / peer", figure, wanted, ok)


def at_least(case: Case, what: str, ours: float, wanted: float) -> Row:
    return Row("3.6", f"{case}: {what}", f"{ours:.4g}", f">= {wanted:.4g}", ours >= wanted)
