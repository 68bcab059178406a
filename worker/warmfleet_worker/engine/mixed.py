"""Steps with a few prompt rows on a GPU as CUDA graphs.

Launched one by one, a step's kernels take the host 12 to 15 ms; a few hundred rows take the device less. So
the forward pass is captured for some numbers of rows, its attention over pages whatever sequences they are.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from warmfleet_worker.engine.base import Work
from warmfleet_worker.engine.staging import Staging
from warmfleet_worker.engine.tables import Inputs, Layout, fits
from warmfleet_worker.models.llama import Llama

SIZES = (32, 64, 96, 128, 160, 192, 224, 256, 320, 384, 448, 512)


class _Captured(NamedTuple):
    layout: Layout
    graph: torch.cuda.CUDAGraph
    hidden: Tensor  # [size, width]


class MixedGraphs:
    """Graphs of one model over one pool. ``drawn`` holds the newest step's tokens, int32 on the device."""

    def __init__(self, llama: Llama, pool: Tensor, drawn: Tensor) -> None:
        self._llama = llama
        self._pool = pool
        self._drawn = drawn
        layouts = [Layout(size) for size in SIZES]
        self._staging = Staging(layouts[-1].words, pool.device)
        self._captured: dict[int, _Captured] = {}
        memory: Any = None
        for layout in reversed(layouts):
            self._captured[layout.rows] = self._capture(layout, memory)
            memory = self._captured[layout.rows].graph.pool()

    def takes(self, works: Sequence[Work]) -> bool:
        """Whether the works are prompts, and decode rows beside them, that fit."""
        return fits(works, self._pool.shape[4], SIZES[-1])

    def compute(self, works: Sequence[Work]) -> Tensor:
        """Launches the forward pass: the last hidden states of the works' rows, good until the next one."""
        count = sum(len(work.token_ids) for work in works)
        layout, graph, hidden = self._captured[next(size for size in SIZES if size >= count)]
        words = self._staging.next()
        self._staging.send(layout.fill(words, works, self._pool, self._llama.rope))
        graph.replay()
        return hidden[:count]

    @torch.inference_mode()
    def _capture(self, layout: Layout, memory: Any) -> _Captured:
        inputs = layout.inputs(self._staging.device)
        self._staging.device.zero_()
        inputs.batch.blocks.fill_(-1)  # nothing is written
        return _Captured(layout, *capture(partial(self._forward, inputs), memory))

    def _forward(self, inputs: Inputs) -> Tensor:
        token_ids, follows, homes, batch = inputs
        drawn = self._drawn.index_select(0, follows.clamp_min(0))
        ids = torch.where(follows < 0, token_ids, drawn)
        return self._llama.forward(ids, homes, batch, self._pool)


def capture(forward: Callable[[], Tensor], memory: Any) -> tuple[torch.cuda.CUDAGraph, Tensor]:
    """A graph of ``forward`` in another graph's memory, and what each replay gives anew."""
    forward()  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=memory):
        result = forward()
    return graph, result
