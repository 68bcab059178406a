"""Bar: Route in process, keys given. Prints the median of one placement."""

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

HELD_BLOCKS = 4096  # a worker


def measure(blocks: int, workers: int, rounds: int = 2000) -> float:
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
        held = [chains[(i + j) % len(chains)][: 8 * blocks] for j in range(max(HELD_BLOCKS // blocks, 1))]
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


def main() -> None:
    print(f"index: {'native' if native else 'python'}")
    for blocks, workers in ((512, 64), (512, 1000), (7000, 64), (20_000, 64)):
        seconds = measure(blocks, workers)
        print(f"Route, keys given, {blocks} blocks x {workers} workers: p50 {seconds * 1e6:.0f} us")


if __name__ == "__main__":
    main()
