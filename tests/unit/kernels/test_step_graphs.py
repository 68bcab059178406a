"""Steps through static tables are the steps of a CPU: what a GPU captures is computed anew at each replay."""

from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from warmfleet_kernels import device, fused
from warmfleet_worker.engine import mixed
from warmfleet_worker.engine.base import Plan, Run, Sampling, Work
from warmfleet_worker.engine.staging import Staging, Words
from warmfleet_worker.engine.torch import TorchEngine
from warmfleet_worker.models import llama

from tests.unit.kernels.paged import DEVICE
from tests.unit.models.tiny import make, save

pytestmark = pytest.mark.skipif(DEVICE == "cuda", reason="test_gpu_engine captures real graphs")

BLOCK, BLOCKS = 4, 60
GREEDY = Sampling()


class Replayed:
    """Stands in for a graph: the same memory gets what the function gives now."""

    def __init__(self, forward: Callable[[], Tensor], result: Tensor) -> None:
        self._forward, self._result = forward, result

    def replay(self) -> None:
        self._result.copy_(self._forward())

    def pool(self) -> None:
        return None


class Memory(Staging):
    """Words that are on the device at once."""

    def __init__(self, words: int, place: torch.device) -> None:
        self.device = torch.zeros(words, dtype=torch.int32, device=place)
        self._words = torch.full_like(self.device, 5)

    def next(self) -> Words:
        words: Words = self._words.numpy()
        return words

    def send(self, used: int) -> None:
        self.device[:used] = self._words[:used]


def engine(folder: Path) -> TorchEngine:
    made = TorchEngine.load(
        str(folder), name="", dtype="float32", device="cpu", block_size=BLOCK, total_blocks=BLOCKS
    )
    made.pool.fill_(torch.nan)
    return made


def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model computes by the GPU's kernels."""

    def rotate_write(pool: Tensor, layer: int, batch: Any, *rest: Any) -> Tensor:
        return fused.rotate_write(pool[:, layer], batch.blocks, batch.offsets, *rest)

    monkeypatch.setattr(llama, "attention", device.attention)
    monkeypatch.setattr(llama, "rotate_write", rotate_write)


def steps() -> Iterator[Plan]:
    """Two prompts; then their tokens with a prompt between them."""
    table = Random(9).sample(range(BLOCKS), 24)
    runs = [(Run(tuple(table[8 * n : 8 * n + 8]), n % 2),) for n in range(3)]
    tokens = [tuple(Random(n).choices(range(97), k=30)) for n in range(3)]
    prompts = [
        Work(ids[:count], 0, run, b"", GREEDY)
        for ids, count, run in zip(tokens, (9, 14, 19), runs, strict=True)
    ]
    yield Plan((prompts[0], prompts[1]))
    first, second = (
        Work((0,), count, runs[n], b"", GREEDY, completion_position=1, follows=n)
        for n, count in enumerate((9, 14))
    )
    yield Plan((first, prompts[2], second))


def test_as_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(make(num_hidden_layers=1), tmp_path)
    ours, theirs = engine(folder), engine(folder)
    wanted = [theirs.execute(plan) for plan in steps()]
    kernels(monkeypatch)
    monkeypatch.setattr(mixed, "SIZES", (32,))
    monkeypatch.setattr(mixed, "Staging", Memory)
    monkeypatch.setattr(mixed, "capture", lambda forward, memory: (Replayed(forward, out := forward()), out))
    ours.mixed = mixed.MixedGraphs(ours.llama, ours.pool, ours._drawn)
    for plan, result in zip(steps(), wanted, strict=True):
        assert ours.mixed.takes(plan.works)
        assert [d.token_ids for d in ours.execute(plan).drawn] == [d.token_ids for d in result.drawn]
    written = ~theirs.pool.isnan()
    assert torch.equal(written, ~ours.pool.isnan())
    assert (ours.pool[written] - theirs.pool[written]).abs().max() < 1e-4
