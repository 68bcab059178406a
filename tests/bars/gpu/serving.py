"""Bar 6: requests through the worker's own scheduler, as fast as the engine goes."""

import time
from collections import deque
from collections.abc import Iterator
from itertools import accumulate
from random import Random
from typing import NamedTuple

import numpy as np
from warmfleet_proto.hashing import chain, root_hash
from warmfleet_worker.admission import Limits
from warmfleet_worker.engine.base import Finish, Sampling
from warmfleet_worker.engine.torch import TorchEngine
from warmfleet_worker.scheduler import Scheduler
from warmfleet_worker.sequence import Key, Params, Request

from tests.bars.rows import Row

VLLM = 8656  # output tokens/s
REQUESTS, SHARED, NEW, OUT = 512, 768, 256, 128
CHUNK_TOKENS, RUNNING = 4096, 256
ARRIVALS, ARRIVING = (20, 40, 60), 240  # requests a second, and how many
DECODED = 64  # steps that are timed


class Times(NamedTuple):
    """Of one request."""

    arrived: float
    tokens: list[float]


def serve(engine: TorchEngine) -> Iterator[Row]:
    for depth in (1, 2):
        server = Server(engine, depth)
        for prompt in _prompts(REQUESTS):
            server.submit(prompt, 0.0)
        began = time.perf_counter()
        while server.step():
            pass
        took = time.perf_counter() - began
        rate = REQUESTS * OUT / took
        what = f"{REQUESTS} requests of {SHARED} shared + {NEW} new -> {OUT}"
        if depth == 1:
            yield Row("6", f"{what}: planned one at a time", f"{rate:,.0f} out tok/s, {server.steps} steps")
            continue
        yield Row("6", what, f"{rate:,.0f} out tok/s", f">= {0.9 * VLLM:,.0f}", rate >= 0.9 * VLLM)
        idle = (took - server.in_engine) / took
        yield Row("6", f"{what}: planning, of {took:.2f} s", f"{idle:.3f}, {server.steps} steps")


def arrivals(engine: TorchEngine) -> Iterator[Row]:
    for rate in ARRIVALS:
        for cached in (True, False):
            yield _poisson(engine, rate, cached)


def _poisson(engine: TorchEngine, rate: float, cached: bool) -> Row:
    """Requests that arrive at random, ``rate`` a second."""
    server, random = Server(engine, engine.depth), Random(7)
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
    figures += f"p50 {np.quantile(gaps, 0.5) * 1e3:.1f} p99 {np.quantile(gaps, 0.99) * 1e3:.1f} "
    figures += f"most {gaps.max() * 1e3:.0f} ms"
    return Row("6", f"{rate} requests/s, cache {'on' if cached else 'off'}", figures)


def decode_s(engine: TorchEngine, rows: int, context: int, depth: int) -> float:
    """Median seconds between two tokens of ``rows`` requests that all decode, around ``context`` tokens: the
    first goes on until the last has been computed, and ``DECODED`` tokens longer."""
    server, random = Server(engine, depth, running=rows), Random(8)
    tokens = DECODED + rows * context // CHUNK_TOKENS
    for _ in range(rows):
        prompt = np.array(random.choices(range(128_000), k=context - tokens // 2), np.uint32)
        server.submit(prompt.tobytes(), 0.0, str(random.random()).encode(), tokens)
    ended: list[float] = []
    while server.step():
        running = server.scheduler.batch.running
        if len(running) == rows and not any(sequence.uncomputed > 1 for sequence in running):
            ended.append(time.perf_counter())
    return float(np.median(np.diff(ended)[2:]))


class Server:
    """A scheduler and an engine in one thread, with up to ``depth`` steps under way."""

    def __init__(self, engine: TorchEngine, depth: int, running: int = RUNNING) -> None:
        limits = Limits(16, 32_768, running, 1024, CHUNK_TOKENS)
        self.scheduler = Scheduler(limits, engine.total_blocks)
        self.times: dict[Key, Times] = {}
        self.in_engine, self.steps = 0.0, 0
        self._engine, self._depth = engine, depth
        self._launched: deque[Finish] = deque()

    def submit(self, prompt: bytes, arrived: float, salt: bytes = b"", tokens: int = OUT) -> None:
        root = root_hash(self._engine.fingerprint, self._engine.block_size, salt=salt)
        key = Key("bench", len(self.times))
        self.times[key] = Times(arrived, [])
        hashes = chain(root, prompt, self._engine.block_size)
        self.scheduler.submit(Request(key, "r", root, prompt, hashes, Params(Sampling(), tokens), arrived))

    def step(self) -> bool:
        """Launches a step, and finishes the oldest when no more may be under way; false when all is done."""
        plan = self.scheduler.schedule(0.0)
        entered = time.perf_counter()
        if plan is not None:
            self._launched.append(self._engine.launch(plan))
            if len(self._launched) < self._depth:
                return True
        if not self._launched:
            return False
        result = self._launched.popleft()()
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
