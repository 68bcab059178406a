"""The GPU's attention against its definition; on a CPU, Triton's interpreter runs the same kernels."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton")

from warmfleet_kernels import device, reference, tiles
from warmfleet_kernels import prefill as slab_attention
from warmfleet_kernels.splits import cut, most_splits

from tests.unit.kernels.paged import DEVICE, Scene

pytestmark = [pytest.mark.gpu] if DEVICE == "cuda" else []

TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}

dtypes = [torch.float32, torch.float16] + ([torch.bfloat16] if DEVICE == "cuda" else [])
EXAMPLES, CONTEXT = (100, 2000) if DEVICE == "cuda" else (4, 80)  # the interpreter is slow
SIZES = [(4, 2, 16, 16), (2, 2, 4, 8), (3, 1, 24, 32)] + ([(16, 4, 16, 128)] if DEVICE == "cuda" else [])
sizes = st.sampled_from(SIZES)
decode_shapes = st.lists(st.tuples(st.integers(0, CONTEXT), st.integers(1, 3)), min_size=1, max_size=3)
ways = st.sampled_from([(0,), (0,), (0, 0), (5, 0), (-3, 40, 0)])


@pytest.fixture(autouse=True)
def plain_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's GPU attention is no kernel of ours: on a CPU its definition stands in."""
    if DEVICE == "cpu":
        monkeypatch.setattr(slab_attention, "_cudnn", stand_in_cudnn)
        monkeypatch.setattr(slab_attention, "_flash", stand_in_flash)
        monkeypatch.setattr(slab_attention, "_flash_ragged", stand_in_ragged)


@pytest.fixture
def slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts go by slabs, however few their rows."""
    monkeypatch.setattr(tiles, "MOST_ROWS", 0)


@pytest.fixture
def few_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "_LEAST", 32)


def plain(query: Tensor, keys: Tensor, shift: int | None) -> slab_attention.Part:
    """Row i sees keys up to i + shift; all of them without one."""
    k, v = keys.float().repeat_interleave(query.shape[1] // keys.shape[1], 1)
    scores = torch.einsum("qhd,hkd->hqk", query.float(), k) * query.shape[-1] ** -0.5
    if shift is not None:
        scores = scores.masked_fill(~torch.ones(scores.shape[1:]).bool().tril(shift), -torch.inf)
    out = torch.einsum("hqk,hkd->qhd", scores.softmax(-1), v).to(query.dtype)
    return slab_attention.Part(out, scores.logsumexp(-1))


def stand_in_cudnn(query: Tensor, keys: Tensor, *, causal: bool) -> slab_attention.Part:
    sizes = [len(query) // slab_attention._ROWS, keys.shape[2] // (1 if causal else slab_attention._KEYS)]
    assert all(causal or size.bit_count() == 1 for size in sizes)
    return plain(query, keys, 0 if causal else None)


def stand_in_flash(query: Tensor, keys: Tensor) -> slab_attention.Part:
    return plain(query, keys, keys.shape[2] - len(query))


def stand_in_ragged(query: Tensor, slab: Tensor, ragged: slab_attention.Ragged) -> Tensor:
    parts = []
    for i, context in enumerate(ragged.contexts.tolist()):
        first, base = int(ragged.query_ends[i]), int(ragged.key_starts[i])
        rows = query[first : int(ragged.query_ends[i + 1])]
        parts.append(stand_in_flash(rows, slab[:, :, base : base + context]).out)
    return torch.cat(parts)


def check(scene: Scene) -> None:
    pool, query = scene.pool.to(DEVICE), scene.query.to(DEVICE)
    batch = device.prepare(scene.sequences, pool)
    out = device.attention(pool, 1, batch, query).cpu()
    wanted = reference.attention(scene.pool.double(), 1, batch, scene.query.double())
    error = (out.double() - wanted).norm() / wanted.norm()
    assert error < TOLERANCE[query.dtype]
    assert (out - wanted).abs().max() < 10 * TOLERANCE[query.dtype]


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.data(), sizes, decode_shapes, st.sampled_from(dtypes), st.integers(0, 1000))
def test_decode(data, size, shapes, dtype, seed) -> None:
    heads, kv_heads, block, dim = size
    deltas = [data.draw(ways) for _ in shapes]
    check(Scene(shapes, deltas, heads=heads, kv_heads=kv_heads, block=block, dim=dim, dtype=dtype, seed=seed))


mixed_shapes = st.lists(
    st.tuples(st.integers(0, CONTEXT), st.sampled_from([1, 9, 30])), min_size=1, max_size=3
)


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(st.data(), sizes, mixed_shapes, st.sampled_from(dtypes), st.integers(0, 1000))
def test_prefill_mixed_with_decode(slabs, data, size, shapes, dtype, seed) -> None:
    heads, kv_heads, block, dim = size
    deltas = [data.draw(ways) for _ in shapes]
    check(Scene(shapes, deltas, heads=heads, kv_heads=kv_heads, block=block, dim=dim, dtype=dtype, seed=seed))


tiled_shapes = st.lists(
    st.tuples(st.integers(0, CONTEXT), st.sampled_from([1, 9, 33])), min_size=1, max_size=2
)


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(sizes, tiled_shapes, st.sampled_from(dtypes), st.integers(0, 1000))
def test_tiles_mixed_with_decode(few_keys, size, shapes, dtype, seed) -> None:
    """Of one run each; tiles are cut into ranges of a few keys, so that some are all future to some rows."""
    heads, kv_heads, block, dim = size
    scene = Scene(
        shapes,
        [(0,)] * len(shapes),
        heads=heads,
        kv_heads=kv_heads,
        block=block,
        dim=dim,
        dtype=dtype,
        seed=seed,
    )
    long = any(count > 8 for _, count in shapes)
    assert (device.tables(scene.sequences, scene.pool).tiles is not None) == long
    check(scene)


@pytest.mark.parametrize("shapes", [[(0, 70)], [(64, 48)], [(110, 77)], [(97, 40), (0, 20), (64, 33)]])
def test_long_chunks_are_cut_and_merged(shapes, slabs, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule's sizes made small, so that chunks are attended to alone and in many pieces."""
    small = {"_ROWS": 8, "_KEYS": 16, "_MANY": 16} if DEVICE == "cpu" else {"_MANY": 16}
    for name, value in small.items():
        monkeypatch.setattr(slab_attention, name, value)
    scale = 1 if DEVICE == "cpu" else 40
    shapes = [(start * scale, count * scale) for start, count in shapes]
    deltas = [(0,), (9, 0), (0,)][: len(shapes)]
    heads, kv_heads, block, dim = SIZES[-1] if DEVICE == "cuda" else SIZES[0]
    check(Scene(shapes, deltas, heads=heads, kv_heads=kv_heads, block=block, dim=dim, dtype=dtypes[-1]))


@pytest.mark.parametrize(
    ("shapes", "pieces"), [([(0, 64)], 0), ([(0, 65)], 1), ([(64, 64)], 1), ([(0, 64), (0, 1)], 1)]
)
def test_what_one_call_attends_to_is_not_copied(
    shapes, pieces, slabs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prompt's first chunk, alone and of one piece: nothing writes into the rows of a result of ours."""
    scale = 1 if DEVICE == "cpu" else 32
    for name, value in {"_ROWS": 8 * scale, "_KEYS": 16 * scale, "_MANY": 16}.items():
        monkeypatch.setattr(slab_attention, name, value)
    written = []
    attend = slab_attention._attend
    monkeypatch.setattr(slab_attention, "_attend", lambda *args: written.append(attend(*args)))
    heads, kv_heads, block, dim = SIZES[-1] if DEVICE == "cuda" else SIZES[0]
    shapes = [(start * scale, count * scale if count > 1 else 1) for start, count in shapes]
    deltas = [(0,)] * len(shapes)
    check(Scene(shapes, deltas, heads=heads, kv_heads=kv_heads, block=block, dim=dim, dtype=dtypes[-1]))
    assert len(written) == pieces


@given(st.lists(st.integers(1, 200_000), min_size=1, max_size=300), st.sampled_from([1, 16, 24, 64]))
@settings(max_examples=60, deadline=None)
def test_cuts_cover_every_token_within_the_grid(lengths, block) -> None:
    import numpy as np

    made = cut(np.array(lengths, dtype=np.int32), block)
    assert len(made.owners) <= most_splits(len(lengths))
    assert (made.starts % block == 0).all()
    assert (made.tokens > 0).all()
    for owner, length in enumerate(lengths[:5]):
        mine = made.owners == owner
        ends = made.starts[mine] + made.tokens[mine]
        assert made.starts[mine].tolist() == [0, *ends[:-1].tolist()]
        assert ends[-1] == length


def test_slabs_have_the_same_strides_whatever_they_hold() -> None:
    """cuDNN plans each stride anew."""
    pool = torch.zeros((9000, 1, 2, 1, 16, 8))
    strides = {slab_attention.new_slab(pool, tokens).stride() for tokens in (16, 4096, 131_072)}
    assert len(strides) == 1
    assert slab_attention.new_slab(pool, 140_000).shape[2] == 140_000
