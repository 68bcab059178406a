"""Bars 1, 2 and 4: whole engine steps, as the scheduler asks for them."""

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from random import Random

import uvloop
from warmfleet_worker.engine.base import Finish, Plan, Run, Sampling, Work
from warmfleet_worker.engine.torch import TorchEngine

from tests.bars.gpu import scaled
from tests.bars.gpu.model import LLAMA_3_8B, TOKEN_BYTES, pick, weight_bytes
from tests.bars.gpu.peers import Rates
from tests.bars.gpu.prefixes import ttft_of_hit
from tests.bars.gpu.serving import DECODED, decode_s
from tests.bars.gpu.timing import Ceilings, attention_rate, kernel_s, matmul_rate, wall_s
from tests.bars.rows import Row

PREFILL = {2048: 41_500, 8192: 38_400, 32768: 27_100}  # vLLM's tokens/s
DECODE = {(1, 512): 4.80e-3, (64, 512): 6.50e-3, (256, 2048): 25.1e-3}  # vLLM's seconds
HIT_S = 22e-3
CHUNK = 16_384  # vLLM's own, for prompts in a batch on such a card
STEPS = 30
SHARE = 0.85
REST_S = 0.3
APART = 64  # rows: prompts of more take long to compute once more
OUTSIDE = 0.10  # the most of a step at batch 64 that is spent outside kernels


def prefill(engine: TorchEngine, ceilings: Ceilings, peers: Rates) -> Iterator[Row]:
    for count, wanted in PREFILL.items():
        plans = prefill_plans(engine, count)
        took = wall_s(partial(run, engine, plans), repeats=5)
        rate = count / took
        yield from scaled.prefill(f"prefill {count}", rate, wanted, ceilings.matmul)
        if count in peers:
            beside = f"{rate / peers[count]:.2f} x"
            yield Row("1", f"prefill {count}: over transformers' {peers[count]:,.0f} tok/s", beside)
        yield from _beside_ceilings(engine, plans, count, took, ceilings)


def _beside_ceilings(
    engine: TorchEngine, plans: list[Plan], count: int, took: float, ceilings: Ceilings
) -> Iterator[Row]:
    """Like beside like: the product for as long as the prompt, in the same state of the card. What it does
    for a millisecond after a rest, its clock does not allow for longer."""
    what = f"prefill {count}: ceilings' time over ours"
    rested = wall_s(partial(run, engine, plans), repeats=3, warm=1, rest=REST_S)
    for state, seconds, rest in (("one after another", took, 0.0), ("after a rest", rested, REST_S)):
        floor = _prefill_floor(count, ceilings._replace(matmul=matmul_rate(seconds, rest)))
        figure = f"{floor / seconds:.3f}, {count / seconds:,.0f} tok/s"
        yield Row("1", f"{what}, both {state}", figure, ">= .85", floor / seconds >= SHARE)
    floor = _prefill_floor(count, ceilings)
    figure = f"{floor / took:.3f}, {floor / rested:.3f}"
    yield Row("1", f"{what}, beside one product after a rest: one after another, after a rest", figure)


def run(engine: TorchEngine, plans: list[Plan]) -> None:
    """One behind another, as many under way as may be."""
    launched: deque[Finish] = deque()
    for plan in plans:
        launched.append(engine.launch(plan))
        if len(launched) == engine.depth:
            launched.popleft()()
    while launched:
        launched.popleft()()


def prefill_plans(engine: TorchEngine, count: int) -> list[Plan]:
    """A prompt in chunks of 16k, as a worker for prompts of that length is set up."""
    blocks = Run(tuple(pick(1, engine.total_blocks, count // 16)))
    token_ids = tuple(Random(2).choices(range(128_000), k=count))
    plans = []
    for start in range(0, count, CHUNK):
        chunk, last = token_ids[start : start + CHUNK], start + CHUNK >= count
        plans.append(Plan((Work(chunk, start, (blocks,), b"", Sampling() if last else None),)))
    return plans


def _prefill_floor(count: int, ceilings: Ceilings) -> float:
    """Seconds at the measured ceilings; logits of one row alone."""
    config = LLAMA_3_8B
    layers = 2 * count * (weight_bytes() / 2 - config.hidden * config.vocab_size)
    attended = 4 * config.layers * config.heads * config.head_dim * count * count / 2
    return layers / ceilings.matmul + attended / attention_rate(count)


def decode(engine: TorchEngine, ceilings: Ceilings) -> Iterator[Row]:
    """The step that a client sees, through the scheduler; the device's alone, and in a row, beside it."""
    for (rows, context), wanted in DECODE.items():
        if rows * (context + 2 * DECODED) > engine.total_blocks * 16:
            yield Row("2", f"decode step, batch {rows}, context {context}", "does not fit this card")
            continue
        plan = decode_plan(engine, rows, context)
        alone = wall_s(partial(engine.execute, plan), repeats=20)
        in_a_row = row_s(engine, plan)
        kernels = kernel_s(partial(run, engine, [plan] * STEPS)) / STEPS
        took = decode_s(engine, rows, context, 2)
        floor = (weight_bytes() + rows * context * TOKEN_BYTES) / ceilings.copy
        what = f"decode step, batch {rows}, context {context}"
        yield from scaled.decode(what, took, wanted, ceilings.copy)
        if rows <= APART:
            apart = decode_s(engine, rows, context, 1)
            yield Row("2", f"{what}: planned one at a time", f"{apart * 1e3:.2f} ms")
        figures = f"{alone * 1e3:.2f}, {in_a_row * 1e3:.2f}, {kernels * 1e3:.2f} ms"
        yield Row("2", f"{what}: engine alone, in a row, kernels", figures)
        yield Row("2", f"{what}: over (weights + KV) / copy rate", f"{took / floor:.2f}")
        outside = 1 - kernels / took
        limit = "<= .10" if rows == 64 else ""
        yield Row("6", f"{what}: outside kernels", f"{outside:.3f}", limit, outside <= OUTSIDE)


def row_s(engine: TorchEngine, plan: Plan) -> float:
    """Seconds a step when each takes the tokens of the one in front, which it is launched behind."""
    works = tuple(replace(work, token_ids=(0,), follows=n) for n, work in enumerate(plan.works))
    run(engine, [plan, *[Plan(works)] * 3])
    began = time.perf_counter()
    run(engine, [plan, *[Plan(works)] * (STEPS - 1)])
    return (time.perf_counter() - began) / STEPS


def decode_plan(engine: TorchEngine, rows: int, context: int) -> Plan:
    each = -(-context // 16)
    blocks = pick(3, engine.total_blocks, rows * each)
    runs = [(Run(tuple(blocks[row * each : (row + 1) * each])),) for row in range(rows)]
    return Plan(tuple(Work((7 + row,), context - 1, runs[row], b"", Sampling()) for row in range(rows)))


def hit(engine: TorchEngine) -> Iterator[Row]:
    """The prefix is in the pool: whatever it holds, the time is the same."""
    blocks = tuple(pick(4, engine.total_blocks, 32_896 // 16))
    work = Work(tuple(range(128)), 32_768, (Run(blocks),), b"", Sampling())
    took = wall_s(partial(engine.execute, Plan((work,))), repeats=10)
    yield Row("4", "32k hit + 128 new: the step", f"{took * 1e3:.1f} ms")
    settings = {"engine": "torch", "model": "random", "chunk_tokens": CHUNK}
    took = uvloop.run(ttft_of_hit(engine, settings))
    yield Row("4", "32k hit + 128 new: TTFT at a worker", f"{took * 1e3:.1f} ms", "<= 22 ms", took <= HIT_S)
