"""Bar: the index against Dynamo's tree in Rust (``dynamo._core.RadixTree``), both in one process.

Half of what a worker holds are leading parts of chains that others hold too, half its own chains of
512 blocks; all chains share their first 16 blocks. Both sides get events of 64 blocks, ours as packed
keys, Dynamo's as the JSON that its binding takes, made before the clock starts. A lookup ends with the
best worker; it takes packed keys on our side and a list of ints on Dynamo's. Requests are for a few of
the shared chains; a row says what a long lookup costs where each is for another of all, from memory.
"""

import ctypes
import gc
import importlib.util
import itertools
import json
import multiprocessing
import os
import random
import subprocess
import sys
import time
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

from warmfleet_router.index.index import Index, native

from tests.bars.rows import Row

DYNAMO = "ai-dynamo-runtime==1.6.1"
SHARED, OWN, ROOT = 8192, 512, 16  # blocks: of a shared chain, of a worker's own, in common
EVENT = 64  # blocks
SIZES = (64, 512, 2048, 8192)
LOOKUPS = 400
ASKED = 32  # chains
FLEETS = ((64, 100_000), (1000, 10_000))  # workers, blocks held by each


class Fleet:
    """What each worker holds, as the packed keys of leading parts of chains."""

    def __init__(self, workers: int, blocks: int) -> None:
        self.workers, self.blocks = workers, blocks
        chance = random.Random(workers)
        self.root = chance.randbytes(8 * ROOT)
        chains = workers * blocks // SHARED // 8  # each in about eight workers
        self.shared = [self.root + chance.randbytes(8 * (SHARED - ROOT)) for _ in range(chains)]

    def events(self, worker: int) -> Iterator[tuple[int, bytes, bytes]]:
        """Depth, the parent's key (none of a first block), keys."""
        for chain in self._chains(worker):
            for start in range(0, len(chain), 8 * EVENT):
                yield start // 8, chain[max(start - 8, 0) : start], chain[start : start + 8 * EVENT]

    def _chains(self, worker: int) -> Iterator[bytes]:
        chance = random.Random(1000 * self.workers + worker)
        left = self.blocks
        while left > self.blocks // 2:
            blocks = min(chance.randrange(EVENT, SHARED + 1), left)
            yield chance.choice(self.shared)[: 8 * blocks]
            left -= blocks
        for end in range(left, 0, -OWN):
            yield (self.root + chance.randbytes(8 * OWN))[: 8 * min(OWN, end)]


class Ours:
    def __init__(self, fleet: Fleet) -> None:
        self.index = Index(16_000_000)
        self.booked = array("d", [float(n % 7) for n in range(fleet.workers)])
        for _ in range(fleet.workers):
            self.index.add_worker()

    def event(self, depth: int, parent: bytes, keys: bytes) -> tuple[int, bytes]:
        return depth, keys

    def ingest(self, worker: int, event: tuple[int, bytes]) -> None:
        self.index.store(worker, 1, *event)

    def request(self, keys: bytes) -> bytes:
        return bytes(bytearray(keys))  # as fresh in the caches as Dynamo's list

    def exact(self, keys: bytes) -> int:
        return max(self.index.leading(keys, self.booked)[0].values())

    def block_by_block(self, keys: bytes) -> int:
        return max(self.index.leading(keys, self.booked, 16, False)[0].values())


class Dynamo:
    def __init__(self, fleet: Fleet) -> None:
        self.tree = importlib.import_module("dynamo._core").RadixTree()
        self.number = itertools.count()

    def event(self, depth: int, parent: bytes, keys: bytes) -> bytes:
        blocks = [{"block_hash": key, "tokens_hash": key} for key in memoryview(keys).cast("Q")]
        before = int.from_bytes(parent, "little") if parent else None
        stored = {"stored": {"parent_hash": before, "blocks": blocks}}
        return json.dumps({"event_id": next(self.number), "data": stored}).encode()

    def ingest(self, worker: int, event: bytes) -> None:
        self.tree.apply_event(worker, event)

    def request(self, keys: bytes) -> list[int]:
        return list(memoryview(keys).cast("Q"))

    def exact(self, keys: list[int]) -> int:
        _, blocks = max(self.tree.find_matches(keys).scores.items(), key=lambda score: score[1])
        return int(blocks)


def fill(side: Any, fleet: Fleet) -> float:
    """Millions of pairs (worker, block) a second of CPU time; Dynamo's tree has a thread of its own."""
    pairs, seconds = 0, 0.0
    for worker in range(fleet.workers):
        events = [side.event(*event) for event in fleet.events(worker)]
        pairs += fleet.blocks
        start = time.process_time()
        for event in events:
            side.ingest(worker, event)
        seconds += time.process_time() - start
    return pairs / seconds / 1e6


def lookup_us(side: Any, call: Callable[[Any], int], chains: list[bytes], blocks: int) -> float:
    """Median."""
    return in_turn_us(side, {"": call}, chains, blocks)[""]


def in_turn_us(
    side: Any, calls: dict[str, Callable[[Any], int]], chains: list[bytes], blocks: int
) -> dict[str, float]:
    """Medians of calls that take turns: what else the machine does meets all of them alike."""
    chance = random.Random(blocks)
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(LOOKUPS):
        for name, call in calls.items():
            request = side.request(chance.choice(chains)[: 8 * blocks])
            start = time.perf_counter()
            found = call(request)
            taken[name].append(time.perf_counter() - start)
            assert found > ROOT
    return {name: median(each) * 1e6 for name, each in taken.items()}


def bytes_held(kind: type[Any], workers: int, blocks: int) -> int:
    """Resident bytes that the index adds to a process of its own."""
    fleet = Fleet(workers, blocks)
    before = resident()
    side = kind(fleet)
    fill(side, fleet)
    return resident() - before


def resident() -> int:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def compare() -> list[Row]:
    kinds: dict[str, type[Any]] = {"ours": Ours}
    if importlib.util.find_spec("dynamo"):
        kinds["dynamo"] = Dynamo
    rows = [Row("3.2", "index", "native" if native else "python", "native", native)]
    for shape in FLEETS:
        rows += compare_one(kinds, *shape)
    return rows


def compare_one(kinds: dict[str, type[Any]], workers: int, blocks: int) -> list[Row]:
    what = f"{workers} x {blocks // 1000}k"
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        held = {name: pool.apply(bytes_held, (kind, workers, blocks)) for name, kind in kinds.items()}
    fleet = Fleet(workers, blocks)
    sides = {name: kind(fleet) for name, kind in kinds.items()}
    rates = {name: fill(side, fleet) for name, side in sides.items()}
    ours = sides["ours"]
    unique = len(ours.index)
    rows = []
    for size in SIZES:
        times = {n: lookup_us(side, side.exact, fleet.shared[:ASKED], size) for n, side in sides.items()}
        rows.append(ratio(f"{what}, exact lookup of {size}", times, "us", 2.0, lower=True))
    for chains, wanted in ((fleet.shared[:ASKED], 2.0), (fleet.shared, 0.0)):
        ways = {"in leaps": ours.exact, "block by block": ours.block_by_block}
        times = in_turn_us(ours, ways, chains, SHARED)
        label = f"{what}, all of {SHARED} verified, {len(chains)} chains"
        rows.append(ratio(label, times, "us", wanted, lower=True))
    rows.append(ratio(f"{what}, ingest", rates, "M pairs/s", 2.0))
    each = {name: total / unique for name, total in held.items()}
    rows.append(ratio(f"{what}, one of {unique / 1e6:.1f} M blocks", each, "bytes", 1 / 0.6, lower=True))
    return rows


def ratio(what: str, figures: dict[str, float], unit: str, wanted: float, lower: bool = False) -> Row:
    """Ours first, the other second: how many times better ours is."""
    shown = ", ".join(f"{name} {figure:.1f}" for name, figure in figures.items()) + f" {unit}"
    if len(figures) == 1:
        return Row("3.2", what, shown)
    ours, other = figures.values()
    better = other / ours if lower else ours / other
    return Row("3.2", what, f"{shown}: {better:.1f}x", f"{wanted:.2g}x" if wanted else "", better >= wanted)


def main() -> list[Row]:
    """In an environment that has Dynamo; without one our own figures."""
    from tests.bars import peers

    root = Path(__file__).parents[2]
    paths = [str(root), str(root / "router"), str(root / "proto")]
    try:
        python = peers.python(DYNAMO)
    except subprocess.CalledProcessError:
        return compare()
    child = subprocess.run(
        [python, "-m", "tests.bars.index"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        cwd=root,
        stdout=subprocess.PIPE,
        check=True,
    )
    return [Row(*row) for row in json.loads(child.stdout)]


if __name__ == "__main__":
    json.dump(compare(), sys.stdout)
