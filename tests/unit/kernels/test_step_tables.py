"""The padded tables of a step's graph hold the step, whatever another step left in them."""

from random import Random

import pytest
import torch

pytest.importorskip("triton")

from warmfleet_kernels import device, reference
from warmfleet_worker.engine.base import Run, Work
from warmfleet_worker.engine.tables import Layout, fits
from warmfleet_worker.models.rope import Rope

from tests.unit.kernels.paged import DEVICE

BLOCK, HEADS, KV_HEADS, DIM, TOTAL = 4, 2, 1, 16, 100
SIZE = 64
RAN = Rope(100.0, DIM, (), torch.device(DEVICE))


def works(shapes: list[tuple[int, int]], seed: int) -> tuple[Work, ...]:
    """(start, count) each; one-token works follow the step before in their own place."""
    random = Random(seed)
    made = []
    for n, (start, count) in enumerate(shapes):
        blocks = tuple(random.sample(range(TOTAL), -(-(start + count) // BLOCK)))
        follows = n if count == 1 else None
        made.append(Work(tuple(range(7, 7 + count)), start, (Run(blocks, n % 3),), b"", follows=follows))
    return tuple(made)


STEPS = [[(20, 1), (9, 40), (30, 1), (0, 12)], [(0, 2), (5, 12)]]


@torch.inference_mode()
def test_attention_and_slots_of_real_rows() -> None:
    layout = Layout(SIZE)
    words = torch.full((layout.words,), 5, dtype=torch.int32)
    for seed, shapes in enumerate(STEPS):
        step = works(shapes, seed)
        pool = torch.randn((TOTAL, 2, 2, KV_HEADS, BLOCK, DIM), generator=torch.Generator().manual_seed(seed))
        assert fits(step, BLOCK, SIZE)
        used = layout.fill(words.numpy(), step, pool, RAN)
        inputs = layout.inputs(words.to(DEVICE))
        count = sum(len(work.token_ids) for work in step)
        assert used <= layout.words
        assert (inputs.batch.blocks[count:] == -1).all()
        assert (inputs.follows[count:] == -1).all()
        ids = [0 if work.follows is not None else 1 for work in step for _ in work.token_ids]
        assert ((inputs.follows[:count] < 0).cpu() == torch.tensor(ids).bool()).all()
        query = torch.randn((SIZE, HEADS, DIM))
        found = device.attention(pool.to(DEVICE), 1, inputs.batch, query.to(DEVICE)).cpu()
        plain = device.prepare(_sequences(step), pool)
        wanted = reference.attention(pool.double(), 1, plain, query[:count].double())
        assert (found[:count] - wanted).abs().max() < 1e-4
        assert torch.equal(inputs.batch.blocks[:count].cpu(), plain.blocks.cpu())


def _sequences(step: tuple[Work, ...]) -> tuple[device.Sequence, ...]:
    from warmfleet_worker.engine.ragged import flatten

    return flatten(step, BLOCK, RAN).sequences


@pytest.mark.parametrize(
    ("shapes", "reason"),
    [
        ([(4, 1)], "decode steps have graphs of their own"),
        ([(0, 60), (0, 60)], "too many rows"),
        ([(0, 10)] * 17, "too many prompts"),
    ],
)
def test_steps_that_do_not_fit(shapes, reason) -> None:
    assert not fits(works(shapes, 0), BLOCK, SIZE), reason


def test_runs_with_deltas_between_do_not_fit() -> None:
    (work,) = works([(0, 20)], 0)
    (run,) = work.runs
    halves = (Run(run.blocks[:2], 0), Run(run.blocks[2:], 3))
    assert not fits((Work(work.token_ids, 0, halves, b""),), BLOCK, SIZE)
