"""Attention of many rows over a paged prefix: pages into a slab, then torch's fused attention.

Measured on an H200 (LOG.md): gathering costs a few per cent, and what is contiguous is attended to by
cuDNN faster than any paged kernel of ours, and faster than flash where there are rows enough. cuDNN knows
no lower-right mask that is fast, and plans each shape and each stride anew (40 ms, in every thread). So a
chunk is cut into pieces of few sizes, each of which attends to its prefix without a mask and to its own rows
causally; the parts are merged by their log-sum-exp. Flash takes what is left. A slab has always the same
length, whatever is in it, and so the same strides.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from warmfleet_kernels.merging import Part, merge
from warmfleet_kernels.rotation import Rotation

SLAB_TOKENS = 131_072  # of the sequences gathered together; a longer one has the slab for itself
_ROWS = 256  # cuDNN's pieces have this times a power of two rows; fewer rows: flash
_KEYS = 2048  # ... and prefixes of this times a power of two keys
_MANY = 1024  # rows, from which on a call of its own pays; fewer: one call of flash for many sequences
_NARROW = 1024  # rows, up to which attention over a prefix leaves processors idle at its end
_LONG = 8192  # prefix, from which on flash must split the keys to fill the device: not in a ragged call


class Chunk(NamedTuple):
    """Consecutive rows of one sequence, and where its keys lie in the slab."""

    first: int
    rows: int
    start: int  # position of the first row
    base: int  # token of the slab

    @property
    def context(self) -> int:
        return self.start + self.rows


class Ragged(NamedTuple):
    """Chunks that one call of flash attends to: their rows follow one another."""

    first: int
    rows: int
    query_ends: Tensor  # int32 [chunks + 1]: rows, from 0
    key_starts: Tensor  # int32 [chunks + 1]: tokens of the slab
    contexts: Tensor  # int32 [chunks]
    longest: int
    longest_context: int


class Turned(NamedTuple):
    """Blocks of a slab whose keys are to be brought into the queries' frame."""

    blocks: Tensor  # int32 [n]
    rotation: Rotation  # a row a block: takes keys where they are to be


class Group(NamedTuple):
    """Chunks whose keys are in the slab at the same time."""

    table: Tensor  # int32 [blocks of the slab]: of the pool
    turned: Turned | None
    ragged: tuple[Ragged, ...]
    chunks: tuple[Chunk, ...]  # those attended to one by one


def alone(count: int, start: int, head_dim: int) -> bool:
    """Whether a chunk gains from calls of its own: the measured rule."""
    if head_dim > 128:
        return False
    return count >= _MANY or start >= _LONG or (count >= _ROWS and start >= _KEYS)


def fused(dtype: torch.dtype, head_dim: int) -> bool:
    """Whether flash attention takes such keys at all."""
    return dtype in (torch.float16, torch.bfloat16) and head_dim % 8 == 0 and head_dim <= 256


def prefill(pages: Tensor, query: Tensor, group: Group, slab: Tensor, out: Tensor) -> Tensor:
    """Causal attention of the group's rows of ``query[rows, heads, head_dim]`` into those of ``out``, which
    is returned. Where one call attends to all rows, its result instead: copying it would take half a norm.

    ``pages`` is one layer of a pool, ``slab[2, kv_heads, tokens, head_dim]`` is scratch.
    """
    gather_pages(pages, group, slab)
    if _at_once(group.chunks, query):
        return _cudnn(query, slab[:, :, : len(query)], causal=True).out
    for ragged in group.ragged:
        rows = slice(ragged.first, ragged.first + ragged.rows)
        out[rows] = _flash_ragged(query[rows], slab, ragged)
    for chunk in group.chunks:
        keys = slab[:, :, chunk.base :]
        rows = slice(chunk.first, chunk.first + chunk.rows)
        _attend(query[rows], keys, chunk.start, out[rows])
    return out


def _at_once(chunks: tuple[Chunk, ...], query: Tensor) -> bool:
    """Whether all rows are a prompt's first ones, and one piece."""
    rows, _, head_dim = query.shape
    if len(chunks) != 1 or chunks[0].rows != rows or chunks[0].start or rows < _ROWS:
        return False
    return fused(query.dtype, head_dim) and list(_row_pieces(rows, 0)) == [rows]


def gather_pages(pages: Tensor, group: Group, slab: Tensor) -> None:
    """Fill the slab with the group's pages, every key in its query's frame."""
    _, pair, kv_heads, block_size, head_dim = pages.shape
    pieces = pair * kv_heads
    each = 4 if pieces % 4 == 0 else 1
    _gather_pages[(len(group.table), pieces // each)](
        pages,
        group.table,
        slab,
        pages.stride(0),
        slab.stride(1),
        PIECES=each,
        WORDS=block_size * head_dim,
        SPAN=triton.next_power_of_2(block_size * head_dim),
        num_warps=4,
    )
    if group.turned is not None:
        _turn_keys[(len(group.turned.blocks), kv_heads)](
            slab,
            group.turned.blocks,
            *group.turned.rotation,
            slab.stride(1),
            BLOCK=block_size,
            HALF=head_dim // 2,
            ROWS=triton.next_power_of_2(block_size),
            SPAN=triton.next_power_of_2(head_dim // 2),
            num_warps=1,
        )


def new_slab(pool: Tensor, tokens: int) -> Tensor:
    """Scratch for ``tokens`` tokens at least, ``[2, kv_heads, length, head_dim]``. All have one length, but
    for a sequence that is longer than ``SLAB_TOKENS``."""
    blocks, _, _, kv_heads, block_size, head_dim = pool.shape
    length = max(tokens, min(SLAB_TOKENS, blocks * block_size))
    return pool.new_empty((2, kv_heads, length, head_dim))


def warm_up(pool: Tensor, heads: int, rows: int, context: int) -> None:
    """Every call of cuDNN that chunks of up to ``rows`` rows on up to ``context`` tokens are cut into, and
    every kind of merge."""
    head_dim = pool.shape[5]
    if not fused(pool.dtype, head_dim) or head_dim > 128:
        return
    query = pool.new_zeros((max(rows, _ROWS), heads, head_dim))
    slab = new_slab(pool, max(context, rows)).zero_()
    for count in _doublings(_ROWS, rows):
        _cudnn(query[:count], slab[:, :, :count], causal=True)
        for keys in _doublings(_KEYS, context):
            _cudnn(query[:count], slab[:, :, :keys], causal=False)
    for pieces in (1, 3, 7):
        seen = pieces * _KEYS + _ROWS
        if seen <= slab.shape[2]:
            _attend_piece(query[:_ROWS], slab[:, :, :seen], torch.empty_like(query[:_ROWS]))


def _doublings(first: int, last: int) -> Iterator[int]:
    while first <= last:
        yield first
        first *= 2


def _attend(query: Tensor, keys: Tensor, start: int, out: Tensor) -> None:
    """One sequence; ``keys[2, kv_heads, tokens >= context, head_dim]``."""
    if not fused(query.dtype, query.shape[-1]):
        out.copy_(_plain(query, keys[:, :, : start + len(query)]))
        return
    first = 0
    for count in _row_pieces(len(query), start):
        rows = slice(first, first + count)
        _attend_piece(query[rows], keys[:, :, : start + first + count], out[rows])
        first += count


def _attend_piece(query: Tensor, keys: Tensor, out: Tensor) -> None:
    """Rows of which the last sees all of ``keys``."""
    count = len(query)
    if count < _ROWS:
        out.copy_(_flash(query, keys)[0])
        return
    start, first, parts = keys.shape[2] - count, 0, []
    with _side_by_side(query, start) as side:
        for size in _key_pieces(start):
            parts.append(_cudnn(query, keys[:, :, first : first + size], causal=False))
            first += size
        own = keys[:, :, first:]
        with torch.cuda.stream(side):
            parts.append(_cudnn(query, own, causal=True) if first == start else _flash(query, own))
    merge(parts, out)


@contextmanager
def _side_by_side(query: Tensor, start: int) -> Iterator[torch.cuda.Stream | None]:
    """A stream for what may run beside the attention over a prefix of ``start`` keys: both see what was
    launched before, and what follows sees both. None: that gains nothing.

    512 rows on 32k take 128 of an H200's 132 processors for .4 ms: their own keys are done on the others
    meanwhile.
    """
    if not query.is_cuda or start < _KEYS or len(query) > _NARROW:
        yield None
        return
    main, side = torch.cuda.current_stream(query.device), _side(query.device)
    side.wait_stream(main)
    yield side
    main.wait_stream(side)


@cache
def _side(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _row_pieces(count: int, start: int) -> Iterator[int]:
    """Rows of each piece: up to the next multiple of ``_KEYS``, then as many as may be."""
    while count:
        piece = min(count, _KEYS - start % _KEYS) if start % _KEYS else count
        if piece >= _ROWS:
            piece = _ROWS << (piece // _ROWS).bit_length() - 1
        yield piece
        count, start = count - piece, start + piece


def _key_pieces(start: int) -> Iterator[int]:
    """Keys of each prefix, the largest first; less than ``_KEYS`` are left."""
    while start >= _KEYS:
        piece = _KEYS << (start // _KEYS).bit_length() - 1
        yield piece
        start -= piece


def _plain(query: Tensor, keys: Tensor) -> Tensor:
    count, context = len(query), keys.shape[2]
    group = query.shape[1] // keys.shape[1]
    k, v = keys.repeat_interleave(group, 1)
    mask = torch.ones((count, context), dtype=torch.bool, device=query.device).tril(context - count)
    return scaled_dot_product_attention(query.transpose(0, 1), k, v, attn_mask=mask).transpose(0, 1)


def _cudnn(query: Tensor, keys: Tensor, *, causal: bool) -> Part:
    """Over all of ``keys[2, kv_heads, n, head_dim]``; causal: row i sees key i and those before it."""
    k, v = keys[:, None]
    result = torch.ops.aten._scaled_dot_product_cudnn_attention(
        query.transpose(0, 1)[None], k, v, None, True, 0.0, causal, False
    )
    return Part(result[0][0].transpose(0, 1), result[1].view(-1, len(query)))


def _flash(query: Tensor, keys: Tensor) -> Part:
    """The same, causal so that the last row sees the last key."""
    k, v = keys.transpose(1, 2).unsqueeze(1)
    result = torch.ops.aten._flash_attention_forward(
        query[None], k, v, None, None, len(query), keys.shape[2], 0.0, True, False
    )
    return Part(result[0][0], result[1][0])


def _flash_ragged(query: Tensor, slab: Tensor, ragged: Ragged) -> Tensor:
    k, v = slab.transpose(1, 2)
    result: Tensor = torch.ops.aten._flash_attention_forward(
        query,
        k,
        v,
        ragged.query_ends,
        ragged.key_starts,
        ragged.longest,
        ragged.longest_context,
        0.0,
        True,
        False,
        seqused_k=ragged.contexts,
    )[0]
    return result


@triton.jit
def _gather_pages(
    pages,
    table,
    slab,
    stride_block,
    stride_piece,
    PIECES: tl.constexpr,
    WORDS: tl.constexpr,
    SPAN: tl.constexpr,
):
    block = tl.program_id(0)
    source = tl.load(table + block).to(tl.int64)
    i = tl.arange(0, SPAN)
    for n in tl.static_range(PIECES):
        piece = tl.program_id(1).to(tl.int64) * PIECES + n
        word = tl.load(pages + source * stride_block + piece * WORDS + i, mask=i < WORDS)
        tl.store(slab + piece * stride_piece + block * WORDS + i, word, mask=i < WORDS)


@triton.jit
def _turn_keys(
    slab,
    blocks,
    cos,
    sin,
    stride_head,
    BLOCK: tl.constexpr,
    HALF: tl.constexpr,
    ROWS: tl.constexpr,
    SPAN: tl.constexpr,
):
    n = tl.program_id(0)
    d = tl.arange(0, SPAN)
    c = tl.load(cos + n * HALF + d, mask=d < HALF, other=0.0)[None, :]
    s = tl.load(sin + n * HALF + d, mask=d < HALF, other=0.0)[None, :]
    t = tl.arange(0, ROWS)
    used = (t[:, None] < BLOCK) & (d[None, :] < HALF)
    token = tl.load(blocks + n) * BLOCK + t[:, None]
    place = slab + tl.program_id(1).to(tl.int64) * stride_head + token * (2 * HALF) + d[None, :]
    low = tl.load(place, mask=used, other=0.0).to(tl.float32)
    high = tl.load(place + HALF, mask=used, other=0.0).to(tl.float32)
    tl.store(place, (low * c - high * s).to(slab.dtype.element_ty), mask=used)
    tl.store(place + HALF, (high * c + low * s).to(slab.dtype.element_ty), mask=used)
