"""Random batches over a pool that holds NaN wherever nothing was written."""

from random import Random

import torch
from torch import Tensor
from warmfleet_kernels import Rotation, Segment, Sequence
from warmfleet_kernels.rotation import inverse

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def angles(positions: Tensor, head_dim: int) -> Rotation:
    half = head_dim // 2
    turned = positions.double()[:, None] * 100.0 ** -(torch.arange(half, dtype=torch.float64) / half)
    return Rotation(turned.cos().float(), turned.sin().float())


def turn(delta: int, head_dim: int) -> Rotation | None:
    return inverse(angles(torch.tensor([delta]), head_dim)) if delta else None


class Scene:
    """A pool [blocks, 2, 2, kv_heads, block, dim] in which each sequence's slots hold random numbers.

    ``shapes`` are (start, count) of each sequence; sequence i takes the deltas ``deltas[i]``, a segment
    each. Neighbours share their first blocks now and then, as prefixes do.
    """

    def __init__(
        self,
        shapes: list[tuple[int, int]],
        deltas: list[tuple[int, ...]],
        *,
        heads: int,
        kv_heads: int,
        block: int,
        dim: int,
        dtype: torch.dtype,
        seed: int = 0,
    ) -> None:
        self.block, self.dim = block, dim
        generator = torch.Generator().manual_seed(seed)
        self._random = Random(seed)
        needed = sum(-(-(start + count) // block) for start, count in shapes)
        self._free = list(range(needed + 3))
        self._random.shuffle(self._free)
        self.pool = torch.full((needed + 3, 2, 2, kv_heads, block, dim), torch.nan, dtype=dtype)
        self._filled = torch.randn(self.pool.shape, generator=generator).to(dtype)
        self.sequences: list[Sequence] = []
        for (start, count), ways in zip(shapes, deltas, strict=True):
            self._add(start, count, ways)
        rows = sum(count for _, count in shapes)
        self.query = torch.randn(rows, heads, dim, generator=generator).to(dtype)

    def _add(self, start: int, count: int, ways: tuple[int, ...]) -> None:
        context = start + count
        table = self._table(context)
        for n, number in enumerate(table):
            live = min(self.block, context - n * self.block)
            self.pool[number, :, :, :, :live] = self._filled[number, :, :, :, :live]
        cuts = sorted(self._random.sample(range(1, len(table)), min(len(ways), len(table)) - 1))
        parts = [table[a:b] for a, b in zip([0, *cuts], [*cuts, len(table)], strict=True)]
        segments = tuple(
            Segment(part, turn(delta, self.dim)) for part, delta in zip(parts, ways, strict=False)
        )
        first = sum(sequence.count for sequence in self.sequences)
        self.sequences.append(Sequence(first, count, start, segments))

    def _table(self, context: int) -> tuple[int, ...]:
        count = -(-context // self.block)
        shared: tuple[int, ...] = ()
        if self.sequences and self._random.random() < 0.5:
            last = self.sequences[-1]
            whole = min(last.context, context) // self.block
            shared = tuple(n for segment in last.segments for n in segment.blocks)[:whole]
        own = tuple(self._free.pop() for _ in range(count - len(shared)))
        return (*shared, *own)
