"""Bar 6: requests through the worker's own scheduler, as fast as the engine goes."""

import time
from collections.abc import Iterator
from random import Random

import numpy as np
from warmfleet_proto.hashing import chain, root_hash
from warmfleet_worker.admission import Limits
from warmfleet_worker.engine.base import Sampling
from warmfleet_worker.engine.torch import TorchEngine
from warmfleet_worker.scheduler import Scheduler
from warmfleet_worker.sequence import Key, Params, Request

from tests.bars.rows import Row

VLLM = 8656  # output tokens/s
REQUESTS, SHARED, NEW, OUT = 512, 768, 256, 128
CHUNK_TOKENS, RUNNING = 4096, 256


def serve(engine: TorchEngine) -> Iterator[Row]:
    root = root_hash(engine.fingerprint, engine.block_size)
    scheduler = Scheduler(Limits(16, 32_768, RUNNING, 1024, CHUNK_TOKENS), engine.total_blocks)
    for n, prompt in enumerate(_prompts()):
        hashes = chain(root, prompt, 16)
        key = Key("bench", n)
        scheduler.submit(Request(key, "r", root, prompt, hashes, Params(Sampling(), OUT), 0.0))
    in_engine, steps, began = 0.0, 0, time.perf_counter()
    while (plan := scheduler.schedule(0.0)) is not None:
        entered = time.perf_counter()
        result = engine.execute(plan)
        in_engine += time.perf_counter() - entered
        steps += 1
        scheduler.commit(result, 0.0)
        scheduler.cache.take_changes()
        scheduler.take_outputs()
    took = time.perf_counter() - began
    rate = REQUESTS * OUT / took
    what = f"{REQUESTS} requests of {SHARED} shared + {NEW} new -> {OUT}"
    yield Row("6", what, f"{rate:,.0f} out tok/s", f">= {0.9 * VLLM:,.0f}", rate >= 0.9 * VLLM)
    outside = (took - in_engine) / took
    yield Row("6", f"{what}: time outside the engine", f"{outside:.3f} of {took:.2f} s, {steps} steps")


def _prompts() -> Iterator[bytes]:
    random = Random(6)
    prefixes = [random.choices(range(128_000), k=SHARED) for _ in range(8)]
    for n in range(REQUESTS):
        yield np.array(prefixes[n % 8] + random.choices(range(128_000), k=NEW), np.uint32).tobytes()
