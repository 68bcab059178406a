"""The engine on a GPU is the engine on a CPU: graphs, kernels and slabs change nothing but the time."""

from pathlib import Path
from random import Random

import pytest
import torch
from warmfleet_worker.engine.base import Plan, Run, Sampling, Work
from warmfleet_worker.engine.torch import TorchEngine

from tests.unit.engine.test_torch_engine import conversations
from tests.unit.models.tiny import make, save

pytestmark = pytest.mark.gpu

BLOCKS, BLOCK = 256, 4
DEPTH = 2
GREEDY = Sampling()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(make(), tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True)
def a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")


def engine(folder: Path, device: str) -> TorchEngine:
    made = TorchEngine.load(
        str(folder), name="", dtype="float32", device=device, block_size=BLOCK, total_blocks=BLOCKS
    )
    made.pool.fill_(torch.nan)
    return made


def works(step: int, count: int) -> tuple[Work, ...]:
    """A prompt for each of ``count`` sequences first, then a token; a third of them sampled."""
    table = Random(9).sample(range(BLOCKS - 10), 16 * count)
    made = []
    for n in range(count):
        tokens = tuple(Random(n).choices(range(97), k=60))
        runs = (Run(tuple(table[16 * n : 16 * n + 16]), n % 2),)
        prompt = 5 + 9 * n
        sampling = Sampling(0.8, top_p=0.9, seed=n) if n % 3 == 2 else GREEDY
        start, end = (0, prompt) if step == 0 else (prompt + step - 1, prompt + step)
        made.append(Work(tokens[start:end], start, runs, b"", sampling, completion_position=step))
    return tuple(made)


@pytest.mark.timeout(300)
def test_steps_agree_with_the_cpu(folder: Path) -> None:
    """Prompts first, then graphs; in one step a new prompt comes between."""
    ours, theirs = engine(folder, "cuda"), engine(folder, "cpu")
    assert ours.graphs is not None
    assert ours.mixed is not None
    prompt = Work(tuple(range(40)), 0, (Run(tuple(range(BLOCKS - 10, BLOCKS))),), b"", GREEDY)
    for step in range(8):
        plan = Plan(works(step, 5) + ((prompt,) if step == 4 else ()))
        assert ours.graphs.takes(plan.works) == (step not in (0, 4))
        assert ours.mixed.takes(plan.works) == (step in (0, 4))
        found, wanted = ours.execute(plan), theirs.execute(plan)
        assert [d.token_ids for d in found.drawn] == [d.token_ids for d in wanted.drawn]
        written = ~theirs.pool.isnan()
        assert torch.equal(written, ~ours.pool.cpu().isnan())
        assert (ours.pool.cpu()[written] - theirs.pool[written]).abs().max() < 1e-4


@pytest.mark.timeout(300)
def test_steps_planned_ahead_agree_with_the_cpu(folder: Path) -> None:
    """Prompts, graphs and draws of every kind, each launched before the one in front has finished."""
    ours, theirs = engine(folder, "cuda"), engine(folder, "cpu")
    ours.warm_up(64)
    assert ours.depth == DEPTH
    found, wanted = conversations(ours, DEPTH), conversations(theirs, 1)
    assert {key: text[0] for key, text in found.texts.items()} == {
        key: text[0] for key, text in wanted.texts.items()
    }
