"""Bar: 10 M distinct blocks through an index bounded at 1 M; memory stays flat and no slice is long.

Workers store chains in slices, read some of them again, drop the ends of others, leave and return,
and what they leave is swept in slices too.
"""

import os
import random
import time
from array import array
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from warmfleet_router.index.index import Index, native

from tests.bars.rows import Row

CAP, BLOCKS, WORKERS = 1_000_000, 10_000_000, 64
SLICE = 512  # blocks stored or removed at once: what the router's loop does between two requests
SWEEP = 4096  # slots
CHAIN = 2048
RUNS = 3
BYTES_A_BLOCK = 150  # RELIABILITY K2, with 20 MB beside


class Clock:
    """Seconds of thread time of every call."""

    def __init__(self) -> None:
        self.taken: list[float] = []

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        start = time.thread_time()
        result = function(*arguments)
        self.taken.append(time.thread_time() - start)
        return result


def soak(index: Index, blocks: int, chance: random.Random) -> tuple[Clock, list[int]]:
    """Runs it; resident bytes at every tenth of the way."""
    clock, resident = Clock(), []
    workers = [index.add_worker() for _ in range(WORKERS)]
    booked = array("d", [0.0] * (2 * WORKERS))
    recent: list[tuple[int, bytes]] = []
    for done in range(0, blocks, CHAIN):
        chain, worker = chance.randbytes(8 * CHAIN), chance.choice(workers)
        parts = [chain[start:stop] for start, stop in pairwise(range(0, 8 * CHAIN + 1, 8 * SLICE))]
        for part, keys in enumerate(parts):
            clock.call(index.store, worker, 1, part * SLICE, keys)
        recent = [*recent[-63:], (worker, chain)]
        holder, seen = chance.choice(recent)
        clock.call(index.leading, seen, booked)
        if holder in workers:
            clock.call(index.store, chance.choice(workers), 2, 0, seen[: 8 * SLICE])
            clock.call(index.remove, holder, 1, seen[-8 * SLICE :])
        if done // CHAIN % 97 == 96:
            leaver = workers.pop(chance.randrange(WORKERS))
            clock.call(index.remove_worker, leaver)
            workers.append(clock.call(index.add_worker))
        clock.call(index.sweep, SWEEP)
        if done * 10 // blocks >= len(resident):
            resident.append(resident_bytes())
    return clock, resident


def main() -> list[Row]:
    """Equal runs make equal calls: the least of a call's times is its own, the rest is the machine's."""
    before = resident_bytes()
    runs = []
    for _ in range(RUNS):
        index = Index(CAP)
        clock, resident = soak(index, BLOCKS, random.Random(1))
        runs.append(clock.taken)
    slope = (resident[-1] - resident[3]) / (len(resident) - 4) / 10  # a tenth is a million blocks
    held = resident[-1] - before
    bound = BYTES_A_BLOCK * CAP + (20 << 20)
    memory = f"{held / 2**20:.0f} MB, {index.memory() / len(index):.0f} bytes a block by its own count"
    least = [min(times) for times in zip(*runs, strict=True)]
    longest = f"{max(least) * 1e3:.2f} ms of {len(least)} (at worst {max(map(max, runs)) * 1e3:.2f} ms)"
    return [
        Row("3.5", "index", "native" if native else "python", "native", native),
        Row("3.5", f"blocks held after {BLOCKS // 10**6} M", f"{len(index)}", f"<= {CAP}", len(index) <= CAP),
        Row("3.5", "gaps counted", f"{index.gaps}"),
        Row("3.5", "memory", memory, f"<= {bound >> 20} MB", held <= bound),
        Row("3.5", "memory growth a 100k blocks", f"{slope / 2**20:.2f} MB", "< 1 MB", slope < 1 << 20),
        Row("3.5", f"longest slice, least of {RUNS} equal runs", longest, "< 1 ms", max(least) < 1e-3),
        Row("3.5", "rate", f"{BLOCKS / sum(least) / 1e6:.1f} M blocks/s of CPU time"),
    ]


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    print(*main(), sep="\n")
