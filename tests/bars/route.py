"""Bar: Route in process and over gRPC, keys given; what hashing a prompt to keys costs."""

import gc
import random
import statistics
import time

from warmfleet_proto import router_pb2 as rpb
from warmfleet_router.hasher import Hasher
from warmfleet_router.index.index import native

from tests.bars import route_grpc
from tests.bars.route_fleet import fleet, request
from tests.bars.rows import Row

# Blocks, workers, and the most microseconds that the median may take.
SIZES = ((512, 64, 100.0), (512, 1000, 250.0), (7000, 64, None), (20_000, 64, None))
BLOCK_BYTES = 64  # of token ids
SEEN, NEW = 8192, 32  # blocks of a conversation and of its next turn


def measure(blocks: int, workers: int, rounds: int = 1000) -> float:
    """Median seconds of Route for prompts of ``blocks`` blocks, half of them held by some workers."""
    core, chains = fleet(blocks, workers, seed=1)
    chance = random.Random(1)
    requests = [request(chance.choice(chains), blocks, i) for i in range(rounds)]
    taken = []
    gc.collect()
    for i, asked in enumerate(requests):
        now = 100.0 + i * 1e-3
        start = time.perf_counter()
        placement = core.route(asked, now)
        taken.append(time.perf_counter() - start)
        core.progress(rpb.ProgressRequest(booking=placement.booking, prefill_s=0.05, ttft_s=0.06), now)
        if i % 4:
            core.finish(rpb.FinishRequest(booking=placement.booking, outcome=rpb.FinishRequest.OK), now)
    return statistics.median(taken)


def hashing() -> list[Row]:
    """Thread seconds: of a prompt that is new, and of the same one come again with a turn more."""
    chance, new, again = random.Random(1), [], []
    for _ in range(15):
        hasher, prompt = Hasher(), chance.randbytes(BLOCK_BYTES * (SEEN + NEW))
        for blocks, taken in ((SEEN, new), (SEEN + NEW, again)):
            start = time.thread_time()
            hasher.keys(b"root" * 4, prompt[: BLOCK_BYTES * blocks], BLOCK_BYTES // 4)
            taken.append(time.thread_time() - start)
    fresh = statistics.median(new) / SEEN * 1e6
    seen = (statistics.median(again) * 1e6 - NEW * fresh) / SEEN
    return [
        Row("3.3", "hashing, a new block", f"{fresh:.2f} us", "<= 1.3 us", fresh <= 1.3),
        Row("3.3", "hashing, a block seen before", f"{seen:.3f} us", "<= .1 us", seen <= 0.1),
    ]


def main() -> list[Row]:
    kind = "native" if native else "Python"
    rows = []
    for blocks, workers, most in SIZES:
        us = measure(blocks, workers) * 1e6
        what = f"Route in process, {blocks} blocks x {workers} workers, {kind} index: p50"
        wanted = f"<= {most:.0f} us" if most else ""
        rows.append(Row("3.3", what, f"{us:.0f} us", wanted, not most or us <= most))
    return [*rows, *hashing(), *route_grpc.rows()]


if __name__ == "__main__":
    print(*main(), sep="\n")
