"""Bar 5: conversations that share a system prompt, 4 sim workers, ``cheapest`` against ``round_robin``.

The same turns at the same times to one fleet after the other. Each has answered a few unrelated prompts
before, as any fleet has that is not just born; turns due before ``warm`` seconds are not counted.
"""

import asyncio
import random

from loadtest.client import play
from loadtest.records import Summary, summarise
from loadtest.workloads import ChatShape, Turn, around, chat, message, offered
from tests.bars import load
from tests.bars.fleet import sim_fleet
from tests.bars.rows import Row

WORKERS, UTILISATION, SEED = 4, 0.6, 5
SHAPE = ChatShape(system=300, question=400, answer=200, max_tokens=16, turns=8, think_s=2.0)


def main() -> list[Row]:
    return rows(*compare(duration=60.0))


def compare(duration: float, warm: float = 0.0, grace: float = 30.0) -> tuple[Summary, Summary]:
    """Round robin's figures, then those of cheapest."""
    turns = load.at(UTILISATION, WORKERS, duration, lambda rate: chat(rate, duration, SEED, SHAPE))
    print(f"   {len(turns)} turns in {duration:.0f} s, infinite cache {offered(turns).hit_rate:.3f}")
    return run("round_robin", turns, warm, grace), run("cheapest", turns, warm, grace)


def run(policy: str, turns: list[Turn], warm: float, grace: float) -> Summary:
    with sim_fleet(WORKERS, policy=policy) as fleet:
        asyncio.run(play(fleet.url, unrelated(), model=fleet.model))
        records = asyncio.run(play(fleet.url, turns, model=fleet.model, grace=grace))
    summary = summarise([record for record in records if record.due >= warm])
    print(f"   {policy:11} {shown(summary)}", flush=True)
    return summary


def unrelated() -> list[Turn]:
    """A few prompts for each worker that share nothing, all at once: least load spreads them."""
    rng = random.Random(SEED)
    prompts = [message(rng, "user", around(rng, 400)) for _ in range(6 * WORKERS)]
    return [Turn(0.0, number, (prompt,), 0, 4) for number, prompt in enumerate(prompts)]


def shown(summary: Summary) -> str:
    s = summary
    return (
        f"hit {s.hit_rate:.3f}, TTFT mean {s.ttft_mean:.3f} p50 {s.ttft_p50:.3f} p99 {s.ttft_p99:.3f} s, "
        f"ITL p99 {1e3 * s.itl_p99:.0f} ms, finished {s.finished}/{s.requests}"
    )


def rows(plain: Summary, ours: Summary) -> list[Row]:
    hits = ours.hit_rate / max(1e-9, plain.hit_rate)
    what = f"{WORKERS} sim workers at {UTILISATION:.0%} of a pooled cache's load, cheapest over round_robin"
    finished = f"{ours.finished} of {ours.requests} ({plain.finished} of {plain.requests})"
    return [
        Row("5", f"{what}: hit rate", f"{hits:.2f}x ({ours.hit_rate:.3f})", ">= 1.3x", hits >= 1.3),
        ratio("TTFT mean", ours.ttft_mean, plain.ttft_mean),
        ratio("TTFT p99", ours.ttft_p99, plain.ttft_p99),
        Row("5", "finished", finished, "no fewer", ours.finished >= plain.finished),
    ]


def ratio(what: str, ours: float, plain: float) -> Row:
    return Row("5", what, f"{ours / plain:.2f}x ({ours:.3f} s)", "< 1x", ours < plain)
