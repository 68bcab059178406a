"""Bars 1, 2 and 4: whole engine steps, as the scheduler asks for them."""

from collections.abc import Iterator
from random import Random

from warmfleet_worker.engine.base import Plan, Run, Sampling, Work
from warmfleet_worker.engine.torch import TorchEngine

from tests.bars.gpu.model import LLAMA_3_8B, TOKEN_BYTES, weight_bytes
from tests.bars.gpu.timing import Ceilings, attention_rate, wall_s
from tests.bars.rows import Row

PREFILL = {2048: 41_500, 8192: 38_400, 32768: 27_100}  # vLLM's tokens/s
DECODE = {(1, 512): 4.80e-3, (64, 512): 6.50e-3, (256, 2048): 25.1e-3}  # vLLM's seconds
HIT_S = 22e-3
CHUNK = 8192


def prefill(engine: TorchEngine, ceilings: Ceilings) -> Iterator[Row]:
    for count, wanted in PREFILL.items():
        plans = prefill_plans(engine, count)
        took = wall_s(lambda plans=plans: [engine.execute(plan) for plan in plans], repeats=5)
        floor = _prefill_floor(count, ceilings)
        rate = count / took
        yield Row("1", f"prefill {count}", f"{rate:,.0f} tok/s", f">= {wanted:,}", rate >= wanted)
        share = floor / took
        yield Row("1", f"prefill {count}: ceilings' time over ours", f"{share:.3f}", ">= .85", share >= 0.85)
        share = _prefill_floor(count, ceilings._replace(matmul=ceilings.long_matmul)) / took
        yield Row("1", f"prefill {count}: the same, matmul ceiling under lasting load", f"{share:.3f}")


def prefill_plans(engine: TorchEngine, count: int) -> list[Plan]:
    """A prompt in chunks of 8k, as a worker for prompts of that length is set up."""
    run = Run(tuple(Random(1).sample(range(engine.total_blocks), count // 16)))
    token_ids = tuple(Random(2).choices(range(128_000), k=count))
    plans = []
    for start in range(0, count, CHUNK):
        chunk, last = token_ids[start : start + CHUNK], start + CHUNK >= count
        plans.append(Plan((Work(chunk, start, (run,), b"", Sampling() if last else None),)))
    return plans


def _prefill_floor(count: int, ceilings: Ceilings) -> float:
    """Seconds at the measured ceilings; logits of one row alone."""
    config = LLAMA_3_8B
    layers = 2 * count * (weight_bytes() / 2 - config.hidden * config.vocab_size)
    attended = 4 * config.layers * config.heads * config.head_dim * count * count / 2
    return layers / ceilings.matmul + attended / attention_rate(count)


def decode(engine: TorchEngine, ceilings: Ceilings) -> Iterator[Row]:
    for (rows, context), wanted in DECODE.items():
        plan = decode_plan(engine, rows, context)
        took = wall_s(lambda plan=plan: engine.execute(plan), repeats=20)
        floor = (weight_bytes() + rows * context * TOKEN_BYTES) / ceilings.copy
        what = f"decode step, batch {rows}, context {context}"
        yield Row("2", what, f"{took * 1e3:.2f} ms", f"<= {wanted * 1e3:.2f} ms", took <= wanted)
        yield Row("2", f"{what}: over (weights + KV) / copy rate", f"{took / floor:.2f}")


def decode_plan(engine: TorchEngine, rows: int, context: int) -> Plan:
    each = -(-context // 16)
    blocks = Random(3).sample(range(engine.total_blocks), rows * each)
    runs = [(Run(tuple(blocks[row * each : (row + 1) * each])),) for row in range(rows)]
    return Plan(tuple(Work((7 + row,), context - 1, runs[row], b"", Sampling()) for row in range(rows)))


def hit(engine: TorchEngine) -> Iterator[Row]:
    """The prefix is in the pool: whatever it holds, the time is the same."""
    blocks = tuple(Random(4).sample(range(engine.total_blocks), 32_896 // 16))
    work = Work(tuple(range(128)), 32_768, (Run(blocks),), b"", Sampling())
    took = wall_s(lambda: engine.execute(Plan((work,))), repeats=10)
    yield Row("4", "32k hit + 128 new: the step", f"{took * 1e3:.1f} ms", "<= 22 ms", took <= HIT_S)
