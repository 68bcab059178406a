"""A router's core with a fleet of workers that hold leading parts of prompts, for the bars of Route."""

import random

from warmfleet_proto import router_pb2 as rpb
from warmfleet_proto import worker_pb2 as pb
from warmfleet_proto.hashing import digest_bytes, presence
from warmfleet_router.core import RouterCore
from warmfleet_router.routing import Routing

HELD_BLOCKS = 1024  # a worker, or two prompts


def fleet(blocks: int, workers: int, seed: int) -> tuple[RouterCore, list[bytes]]:
    """The core, at 99.9 s, and prompts of ``blocks`` BlockHashes: half of each is held by some workers."""
    core, chance = RouterCore(Routing(), 1), random.Random(seed)
    chains = [chance.randbytes(16 * blocks) for _ in range(max(workers // 4, 1))]
    for i in range(workers):
        address = f"w{i}:1"
        core.roster.add(address)
        core.roster.joined(address, _status(f"w{i}"), 0.0)
        held = [chains[(i + j) % len(chains)][: 8 * blocks] for j in range(max(HELD_BLOCKS // blocks, 2))]
        message = pb.WatchKvResponse(epoch=1, snapshot=_snapshot(list(dict.fromkeys(held))), load=_load(i))
        assert not any(core.roster.ingest(address, message, 99.9))
    core.tick(99.9)
    return core, chains


def request(chain: bytes, blocks: int, number: int) -> rpb.RouteRequest:
    return rpb.RouteRequest(
        request_id=str(number),
        gateway_id="g",
        model="m",
        keys=memoryview(chain).cast("Q")[::2].tobytes(),
        prompt_tokens=16 * blocks + 5,
        max_tokens=256,
    )


def _status(name: str) -> pb.StatusResponse:
    return pb.StatusResponse(
        worker=name,
        epoch=1,
        model="m",
        model_fingerprint=b"f",
        block_size=16,
        max_context=1 << 20,
        max_running=256,
    )


def _snapshot(held: list[bytes]) -> pb.KvSnapshot:
    digest = sum(presence(h[n : n + 16], pb.DEVICE) for h in held for n in range(0, len(h), 16))
    part = pb.KvSnapshot(digest=digest_bytes(digest), first=True, last=True)
    part.stored.extend(pb.Stored(tier=pb.DEVICE, hashes=h) for h in held)
    return part


def _load(number: int) -> pb.WorkerLoad:
    return pb.WorkerLoad(
        running=number % 7, prefill_tokens=100 * (number % 5), context_tokens=500 * (number % 7)
    )
