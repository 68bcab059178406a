"""Bar 3 of issue 3: Route in process, keys given; the median of one placement."""

import gc
import os
import random
import statistics
import time

from warmfleet_proto import router_pb2 as rpb
from warmfleet_proto import worker_pb2 as pb
from warmfleet_proto.hashing import digest_bytes, presence
from warmfleet_router.core import RouterCore
from warmfleet_router.index import native
from warmfleet_router.routing import Routing

from tests.bars.rows import Row

HELD_BLOCKS = 1024  # a worker, or two prompts

# Blocks, workers, and the most microseconds that the median may take.
SIZES = ((512, 64, 100.0), (512, 1000, 250.0), (7000, 64, None), (20_000, 64, None))


def measure(blocks: int, workers: int, rounds: int = 1000) -> float:
    """Median seconds of Route for prompts of ``blocks`` blocks, half of them held by some workers."""
    core, chains = _fleet(blocks, workers)
    chance = random.Random(1)
    requests = [_request(chance.choice(chains), blocks, i) for i in range(rounds)]
    taken = []
    gc.collect()
    for i, request in enumerate(requests):
        now = 100.0 + i * 1e-3
        start = time.perf_counter()
        placement = core.route(request, now)
        taken.append(time.perf_counter() - start)
        core.progress(rpb.ProgressRequest(booking=placement.booking, prefill_s=0.05, ttft_s=0.06), now)
        if i % 4:
            core.finish(rpb.FinishRequest(booking=placement.booking, outcome=rpb.FinishRequest.OK), now)
    return statistics.median(taken)


def _fleet(blocks: int, workers: int) -> tuple[RouterCore, list[bytes]]:
    core = RouterCore(Routing(), 1)
    chains = [os.urandom(16 * blocks) for _ in range(max(workers // 4, 1))]
    for i in range(workers):
        address = f"w{i}:1"
        core.roster.add(address)
        status = pb.StatusResponse(
            worker=f"w{i}",
            epoch=1,
            model="m",
            model_fingerprint=b"f",
            block_size=16,
            max_context=1 << 20,
            max_running=256,
        )
        core.roster.joined(address, status, 0.0)
        held = [chains[(i + j) % len(chains)][: 8 * blocks] for j in range(max(HELD_BLOCKS // blocks, 2))]
        held = list(dict.fromkeys(held))
        digest = sum(presence(h[n : n + 16], pb.DEVICE) for h in held for n in range(0, len(h), 16))
        part = pb.KvSnapshot(digest=digest_bytes(digest), first=True, last=True)
        part.stored.extend(pb.Stored(tier=pb.DEVICE, hashes=h) for h in held)
        load = pb.WorkerLoad(running=i % 7, prefill_tokens=100 * (i % 5), context_tokens=500 * (i % 7))
        message = pb.WatchKvResponse(epoch=1, snapshot=part, load=load)
        assert not any(core.roster.ingest(address, message, 99.9))
    core.tick(99.9)
    return core, chains


def _request(chain: bytes, blocks: int, number: int) -> rpb.RouteRequest:
    keys = memoryview(chain).cast("Q")[::2].tobytes()
    return rpb.RouteRequest(
        request_id=str(number),
        gateway_id="g",
        model="m",
        keys=keys,
        prompt_tokens=16 * blocks + 5,
        max_tokens=256,
    )


def main() -> list[Row]:
    kind = "native" if native else "Python"
    rows = []
    for blocks, workers, most in SIZES:
        us = measure(blocks, workers) * 1e6
        what = f"Route in process, {blocks} blocks x {workers} workers, {kind} index: p50"
        wanted = f"<= {most:.0f} us" if most else ""
        rows.append(Row("3.3", what, f"{us:.0f} us", wanted, not most or us <= most))
    return rows


if __name__ == "__main__":
    print(*main(), sep="\n")
