"""Attention over pages against plain attention over contiguous keys and values."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from warmfleet_kernels import (
    Rotation,
    Segment,
    Sequence,
    attention,
    copy_blocks,
    prepare,
    reference,
    rotate,
    write_kv,
)
from warmfleet_kernels.rotation import inverse

LAYERS, KV_HEADS, HEADS, BLOCK, DIM = 3, 2, 6, 4, 8
LAYER = 1


def angles(positions: Tensor) -> Rotation:
    frequencies = 100.0 ** -(torch.arange(DIM // 2, dtype=torch.float64) / (DIM // 2))
    turned = positions.double()[:, None] * frequencies
    return Rotation(turned.cos().float(), turned.sin().float())


def turn(delta: int) -> Rotation | None:
    return inverse(angles(torch.tensor([delta]))) if delta else None


class Scene:
    """Sequences with random keys and values, in a pool that holds NaN wherever nothing was written."""

    def __init__(self, shapes: list[tuple[int, int]], deltas: tuple[int, ...] = (0,), seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        total = sum(-(-(start + count) // BLOCK) for start, count in shapes)
        self.pool = torch.full((total + 3, LAYERS, 2, KV_HEADS, BLOCK, DIM), torch.nan)
        self.order = torch.randperm(total + 3, generator=generator)
        self.generator = generator
        self.queries: list[Tensor] = []
        self.expected: list[Tensor] = []
        self.sequences = [self._add(start, count, deltas) for start, count in shapes]
        self.query = torch.cat(self.queries)
        self.batch = prepare(self.sequences, self.pool)

    def _add(self, start: int, count: int, deltas: tuple[int, ...]) -> Sequence:
        context = start + count
        positions = torch.arange(context)
        key, value = torch.randn(2, context, KV_HEADS, DIM, generator=self.generator)
        query = torch.randn(count, HEADS, DIM, generator=self.generator)
        first = sum(map(len, self.queries))
        tables = self._take(-(-context // BLOCK)).tensor_split(len(deltas))
        homes = torch.cat(
            [
                positions.new_full((len(table) * BLOCK,), delta)
                for table, delta in zip(tables, deltas, strict=True)
            ]
        )[:context]
        segments = tuple(Segment(tuple(t.tolist()), turn(d)) for t, d in zip(tables, deltas, strict=True))
        whole = Sequence(0, context, 0, segments)
        stored = rotate(key, angles(positions - homes))
        write_kv(self.pool, LAYER, prepare([whole], self.pool), stored, value)
        self.queries.append(rotate(query, angles(positions[start:])))
        self.expected.append(plain(self.queries[-1], rotate(key, angles(positions)), value, start))
        return Sequence(first, count, start, segments)

    def _take(self, count: int) -> Tensor:
        taken, self.order = self.order[:count], self.order[count:]
        return taken


def plain(query: Tensor, key: Tensor, value: Tensor, start: int) -> Tensor:
    group = HEADS // KV_HEADS
    mask = torch.ones(len(query), len(key), dtype=torch.bool).tril(start)
    out = scaled_dot_product_attention(
        query.transpose(0, 1),
        key.repeat_interleave(group, 1).transpose(0, 1),
        value.repeat_interleave(group, 1).transpose(0, 1),
        attn_mask=mask,
    )
    return out.transpose(0, 1)


SHAPES = [(0, 1), (0, 7), (5, 1), (8, 8), (13, 6), (31, 1)]


@pytest.mark.parametrize("attend", [attention, reference.attention])
@pytest.mark.parametrize("deltas", [(0,), (0, 0), (1000, 0), (-3, 40, 0)])
def test_agrees_with_plain_attention(attend, deltas) -> None:
    shapes = (
        [(max(start, BLOCK * len(deltas)), count) for start, count in SHAPES] if len(deltas) > 1 else SHAPES
    )
    scene = Scene(shapes, deltas)
    out = attend(scene.pool, LAYER, scene.batch, scene.query)
    assert torch.allclose(out, torch.cat(scene.expected), atol=2e-6, rtol=0)


def test_fast_and_reference_agree_in_bfloat16() -> None:
    scene = Scene(SHAPES)
    pool, query = scene.pool.bfloat16(), scene.query.bfloat16()
    fast = attention(pool, LAYER, scene.batch, query)
    assert torch.allclose(fast, reference.attention(pool, LAYER, scene.batch, query), atol=0.02)


def test_write_touches_its_own_slots_only() -> None:
    scene = Scene([(0, 6)])
    written = ~scene.pool.isnan()
    assert written[:, [0, 2]].sum() == 0
    assert written.sum() == 6 * 2 * KV_HEADS * DIM


def test_copies_read_before_they_write() -> None:
    pool = torch.arange(4.0).reshape(4, 1, 1, 1, 1, 1).repeat(1, LAYERS, 2, KV_HEADS, BLOCK, DIM)
    copy_blocks(pool, torch.tensor([0, 1]), torch.tensor([1, 2]))
    assert pool[:, 0, 0, 0, 0, 0].tolist() == [0, 0, 1, 3]
    assert torch.equal(pool[2], torch.ones_like(pool[2]))


def test_rotation_is_the_half_split_one_and_composes() -> None:
    x = torch.randn(5, HEADS, DIM, generator=torch.Generator().manual_seed(1))
    there = rotate(x, angles(torch.arange(5) + 1000))
    assert torch.allclose(
        rotate(there, inverse(angles(torch.tensor([1000])))), rotate(x, angles(torch.arange(5))), atol=1e-5
    )
    one = rotate(torch.tensor([[[1.0, 0, 0, 0, 0, 0, 0, 0]]]), angles(torch.tensor([1])))[0, 0]
    assert torch.allclose(one[[0, 4]], torch.tensor([1.0]).cos().new_tensor([0.5403023, 0.8414710]))
