"""Bar 6: requests through the worker's own scheduler, as fast as the engine goes."""

import time
from collections.abc import Iterator
from itertools import accumulate
from random import Random
from typing import NamedTuple

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
ARRIVALS, ARRIVING = (20, 40, 60), 240  # requests a second, and how many


class Times(NamedTuple):
    """Of one request."""

    arrived: float
    tokens: list[float]


def serve(engine: TorchEngine) -> Iterator[Row]:
    server = Server(engine)
    for prompt in _prompts(REQUESTS):
        server.submit(prompt, 0.0)
    began = time.perf_counter()
    while server.step():
        pass
    took = time.perf_counter() - began
    rate = REQUESTS * OUT / took
    what = f"{REQUESTS} requests of {SHARED} shared + {NEW} new -> {OUT}"
    yield Row("6", what, f"{rate:,.0f} out tok/s", f">= {0.9 * VLLM:,.0f}", rate >= 0.9 * VLLM)
    outside = (took - server.in_engine) / took
    yield Row("6", f"{what}: time outside the engine", f"{outside:.3f} of {took:.2f} s, {server.steps} steps")
    for rate in ARRIVALS:
        for cached in (True, False):
            yield _poisson(engine, rate, cached)


def _poisson(engine: TorchEngine, rate: float, cached: bool) -> Row:
    """Requests that arrive at random, ``rate`` a second."""
    server, random = Server(engine), Random(7)
    arrivals = list(accumulate(random.expovariate(rate) for _ in range(ARRIVING)))
    prompts = _prompts(ARRIVING)
    began, n = time.perf_counter(), 0
    while n < ARRIVING or not server.scheduler.idle:
        now = time.perf_counter() - began
        while n < ARRIVING and arrivals[n] <= now:
            server.submit(next(prompts), began + arrivals[n], b"" if cached else str(n).encode())
            n += 1
        if not server.step():
            time.sleep(max(0.0, arrivals[n] - (time.perf_counter() - began)) if n < ARRIVING else 0.0)
    took = time.perf_counter() - began
    first = [times.tokens[0] - times.arrived for times in server.times.values()]
    gaps = np.concatenate([np.diff(times.tokens) for times in server.times.values()])
    figures = f"{ARRIVING * OUT / took:,.0f} out tok/s, TTFT mean {np.mean(first) * 1e3:.0f} ms, ITL "
    figures += f"p50 {np.quantile(gaps, 0.5) * 1e3:.1f} p99 {np.quantile(gaps, 0.99) * 1e3:.1f} ms"
    return Row("6", f"{rate} requests/s, cache {'on' if cached else 'off'}", figures)


class Server:
    """A scheduler and an engine in one thread."""

    def __init__(self, engine: TorchEngine) -> None:
        limits = Limits(16, 32_768, RUNNING, 1024, CHUNK_TOKENS)
        self.scheduler = Scheduler(limits, engine.total_blocks)
        self.times: dict[Key, Times] = {}
        self.in_engine, self.steps = 0.0, 0
        self._engine = engine

    def submit(self, prompt: bytes, arrived: float, salt: bytes = b"") -> None:
        root = root_hash(self._engine.fingerprint, self._engine.block_size, salt=salt)
        key = Key("bench", len(self.times))
        self.times[key] = Times(arrived, [])
        hashes = chain(root, prompt, self._engine.block_size)
        self.scheduler.submit(Request(key, "r", root, prompt, hashes, Params(Sampling(), OUT), arrived))

    def step(self) -> bool:
        plan = self.scheduler.schedule(0.0)
        if plan is None:
            return False
        entered = time.perf_counter()
        result = self._engine.execute(plan)
        left = time.perf_counter()
        self.in_engine += left - entered
        self.steps += 1
        self.scheduler.commit(result, 0.0)
        self.scheduler.cache.take_changes()
        for output in self.scheduler.take_outputs():
            self.times[output.request.key].tokens.extend([left] * len(output.token_ids))
        return True


def _prompts(count: int) -> Iterator[bytes]:
    random = Random(6)
    prefixes = [random.choices(range(128_000), k=SHARED) for _ in range(8)]
    for n in range(count):
        yield np.array(prefixes[n % 8] + random.choices(range(128_000), k=NEW), np.uint32).tobytes()
