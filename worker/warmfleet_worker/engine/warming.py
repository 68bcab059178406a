"""Steps that meet every kernel and every plan once, so that no request waits for one to be made.

They write into blocks that nobody can read. Triton compiles a kernel at its first launch, CUDA loads one
then, and cuDNN plans each shape in each thread.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from warmfleet_kernels import warm_up as warm_up_attention

from warmfleet_worker.engine.base import Plan, Run, Sampling, Work

if TYPE_CHECKING:
    from warmfleet_worker.engine.torch import TorchEngine

_CPU_TOKENS = 256  # one size for CPUs: there is little to make, and a step takes long
_GREEDY = Sampling()
_DECODED = 4  # rows of the smallest decode step that is met
_APART = 64  # rows, where steps are small
_MANY = 20  # short prompts that no graph holds
_SAMPLED = Sampling(0.5, top_p=0.9, top_k=20, min_p=0.01, logprobs=2)


@torch.inference_mode()
def warm_up(engine: "TorchEngine", chunk_tokens: int) -> None:
    """See ``engine.base.Engine.warm_up``."""
    on_gpu = engine.pool.is_cuda
    room = min(engine.total_blocks * engine.block_size, engine.max_context)
    longest = min(chunk_tokens if on_gpu else _CPU_TOKENS, room)
    shortest = 1 if on_gpu else longest
    for plan in _plans(engine.total_blocks, engine.block_size, shortest, longest):
        engine.execute(plan)
    warm_up_attention(engine.pool, engine.llama.config.heads, longest, room)


def _plans(total_blocks: int, block_size: int, shortest: int, longest: int) -> Iterator[Plan]:
    """Prompts of many sizes, a few decode steps, and prompts beside them."""
    for count in sizes(shortest, longest):
        yield Plan((_work(count, 0, total_blocks, block_size),))
    short = _work(min(longest, 32), 0, total_blocks, block_size)
    for sampling in (_GREEDY, _SAMPLED):
        rows = tuple(_work(1, at, total_blocks, block_size, sampling) for at in range(min(_DECODED, longest)))
        yield Plan(rows)
        yield Plan((*rows, short, short))
    if longest >= _MANY * len(short.token_ids):
        yield Plan((*rows, *[short] * _MANY))
    yield Plan((Work(short.token_ids, 0, short.runs, b"", _GREEDY, prompt_logprobs=1),))


def sizes(shortest: int, longest: int) -> Iterator[int]:
    """Rows of steps, no further apart than an eighth: a BLAS has other kernels for other numbers of rows, and
    the first use of each loads it (some 20 ms of a step)."""
    count = shortest
    while count < longest:
        yield count
        count += max(count // 8, _APART)
    yield longest


def _work(count: int, start: int, total_blocks: int, block_size: int, sampling: Sampling = _GREEDY) -> Work:
    needed = -(-(start + count) // block_size)
    return Work((0,) * count, start, (Run(tuple(range(min(needed, total_blocks)))),), b"", sampling)
