"""Decode steps on a GPU as CUDA graphs: one launch, one copy in, one read of the tokens out, no wait.

A graph is captured for each of a few batch sizes over static tables; a step fills the tables of the next
larger size. Rows that it does not need write no KV and attend to nothing.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from warmfleet_kernels import Batch

from warmfleet_worker.engine.base import Run, Work
from warmfleet_worker.engine.drawing import Outcome, draw_rows, draws_of
from warmfleet_worker.engine.sampling import GREEDY_BELOW
from warmfleet_worker.engine.staging import Staging, Words
from warmfleet_worker.models.llama import Llama

SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256)
TABLE = 1 << 20  # blocks of all sequences of a step together: 4 MiB of block numbers
_ALIGNED = 4  # words: tables start at 16 bytes, so that kernels are compiled once for all sizes


class _Layout(NamedTuple):
    """First words of a size's tables in the static buffer."""

    token_ids: int
    follows: int
    homes: int
    blocks: int
    offsets: int
    rows: int
    firsts: int
    tokens: int
    bounds: int
    table: int


class _Captured(NamedTuple):
    graph: torch.cuda.CUDAGraph
    logits: Tensor  # [size, vocab]


class DecodeGraphs:
    """Graphs of one model over one pool. ``drawn`` holds the newest step's tokens, int32 on the device."""

    def __init__(self, llama: Llama, pool: Tensor, drawn: Tensor) -> None:
        from warmfleet_kernels import splits

        self._splits = splits
        self._llama = llama
        self._pool = pool
        self._block_size = pool.shape[4]
        words = self._layout(SIZES[-1]).table + TABLE
        self._staging = Staging(words, pool.device)
        self._drawn = drawn
        self._targets = torch.arange(SIZES[-1], dtype=torch.int32, device=pool.device)
        self._known: dict[int, tuple[Run, Words]] = {}  # of the last step
        self._captured: dict[int, _Captured] = {}
        memory: Any = None
        for size in reversed(SIZES):
            self._captured[size] = self._capture(size, memory)
            memory = self._captured[size].graph.pool()

    def takes(self, works: Sequence[Work]) -> bool:
        """Whether all works are plain decode rows that fit."""
        return (
            0 < len(works) <= SIZES[-1]
            and all(len(w.token_ids) == len(w.runs) == w.draws == 1 for w in works)
            and all(w.prompt_logprobs is None for w in works)
            and sum(len(w.runs[0].blocks) for w in works) <= TABLE
        )

    def step(self, works: Sequence[Work]) -> Outcome:
        """Launches the works' rows and their draws."""
        count = len(works)
        size = next(size for size in SIZES if size >= count)
        words = self._staging.next()
        self._staging.send(self._fill(works, self._layout(size), size, words))
        captured = self._captured[size]
        captured.graph.replay()
        if all(_greedy(work) for work in works):
            return Outcome(self._drawn[:count])
        outcome = draw_rows(draws_of(works), captured.logits[:count])
        assert outcome.tokens is not None
        self._drawn[:count].copy_(outcome.tokens)
        return outcome

    def _layout(self, size: int) -> _Layout:
        splits = self._splits.most_splits(size)
        lengths = (size, size, size, size, size, splits, splits, splits, size + 1)
        aligned = [-(-length // _ALIGNED) * _ALIGNED for length in lengths]
        return _Layout(*(sum(aligned[:n]) for n in range(len(aligned) + 1)))

    def _tables(self, runs: Sequence[Run]) -> list[Words]:
        """The runs' block numbers. A sequence's run is the same object until it grows by a block."""
        known = self._known
        self._known = {
            id(run): known.get(id(run)) or (run, np.array(run.blocks, dtype=np.int32)) for run in runs
        }
        return [self._known[id(run)][1] for run in runs]

    def _fill(self, works: Sequence[Work], at: _Layout, size: int, words: Words) -> int:
        """The tables of a step; how many words it uses."""
        count, block_size = len(works), self._block_size
        starts = np.array([work.start for work in works])
        runs = [work.runs[0] for work in works]
        lengths = np.array([len(run.blocks) for run in runs])
        bases = np.cumsum(lengths) - lengths
        end = at.table + int(lengths.sum())
        table = words[at.table : end]
        np.concatenate(self._tables(runs), out=table)
        words[at.token_ids : at.token_ids + size] = 0  # a row that is not needed looks one up as well
        words[at.token_ids : at.token_ids + count] = [work.token_ids[0] for work in works]
        words[at.follows : at.follows + size] = -1
        words[at.follows : at.follows + count] = [-1 if w.follows is None else w.follows for w in works]
        words[at.homes : at.homes + count] = starts - np.array([run.delta for run in runs])
        words[at.blocks : at.blocks + size] = -1
        words[at.blocks : at.blocks + count] = table[bases + starts // block_size]
        words[at.offsets : at.offsets + count] = starts % block_size
        made = self._splits.cut((starts + 1).astype(np.int32), block_size)
        parts = len(made.owners)
        words[at.rows : at.rows + parts] = made.owners
        words[at.firsts : at.firsts + parts] = bases[made.owners] + made.starts // block_size
        words[at.tokens : at.bounds] = 0
        words[at.tokens : at.tokens + parts] = made.tokens
        words[at.bounds : at.bounds + size + 1] = parts
        words[at.bounds : at.bounds + count + 1] = np.searchsorted(made.owners, np.arange(count + 1))
        return end

    @torch.inference_mode()
    def _capture(self, size: int, memory: Any) -> _Captured:
        from warmfleet_kernels.decode import Splits
        from warmfleet_kernels.device import Reads

        at = self._layout(size)
        words = self._staging.device
        words[at.blocks : at.blocks + size] = -1
        words[at.tokens : at.table] = 0
        splits = self._splits.most_splits(size)
        ranged: Callable[[int, int], Tensor] = lambda first, length: words[first : first + length]  # noqa: E731
        tables = Splits(
            words[at.table :],
            ranged(at.rows, splits),
            ranged(at.firsts, splits),
            ranged(at.tokens, splits),
            ranged(at.bounds, size + 1),
            self._targets[:size],
        )
        batch = Batch((), ranged(at.blocks, size), ranged(at.offsets, size), reads=Reads(tables))

        def forward() -> Tensor:
            follows, homes = ranged(at.follows, size), ranged(at.homes, size)
            known = ranged(at.token_ids, size)
            token_ids = torch.where(follows < 0, known, self._drawn.index_select(0, follows.clamp_min(0)))
            logits = self._llama.logits(self._llama.forward(token_ids, homes, batch, self._pool))
            self._drawn[:size].copy_(logits.argmax(-1))
            return logits

        forward()  # compiles
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=memory):
            logits = forward()
        words.zero_()
        return _Captured(graph, logits)


def _greedy(work: Work) -> bool:
    sampling = work.sampling
    return (
        sampling is not None
        and sampling.temperature < GREEDY_BELOW
        and sampling.logprobs is None
        and len(work.choices) == 1
    )
