"""Hashing with a memory equals hashing without one, and what was seen before is not hashed again."""

import random
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from warmfleet_proto import hashing
from warmfleet_proto.limits import TOKEN_BYTES
from warmfleet_router import hasher as chosen
from warmfleet_router.hasher import PIECE, Hasher, linked_python
from warmfleet_router.index.index import native

ROOTS = [bytes([n]) * 16 for n in range(2)]
BLOCK = 4
CONVERSATION = random.Random(1).randbytes(16 * 6 * PIECE)
CPUINFO = Path("/proc/cpuinfo")
needs_native = pytest.mark.skipif(chosen.linked is linked_python, reason="no native hashing here")
edges = st.integers(0, len(CONVERSATION) // 4)


def plain(root: bytes, token_ids: bytes, block_size: int) -> bytes:
    """Link by link; a chain, which remembers pieces, is the same."""
    size, parent, hashes = block_size * TOKEN_BYTES, root, []
    for end in range(size, len(token_ids) + 1, size):
        parent = hashing.block_hash(parent, token_ids[end - size : end])
        hashes.append(parent)
    assert hashing.chain(root, token_ids, block_size) == hashes
    return hashing.keys(hashes)


class Prompts:
    """Prompts that go on from one conversation and leave it somewhere, as token ids."""

    @staticmethod
    def build(kept: int, ending: int, chance: int) -> bytes:
        return CONVERSATION[: 4 * kept] + random.Random(chance).randbytes(4 * ending)


prompts = st.builds(Prompts.build, edges, st.integers(0, 70), st.integers(0, 2))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(ROOTS), prompts, st.sampled_from([1, 4, 16])), max_size=12),
    st.sampled_from([0, 3000, 30_000, 1 << 20]),
)
def test_keys_are_those_of_plain_hashing(asked: list[tuple[bytes, bytes, int]], memo_bytes: int) -> None:
    hasher = Hasher(memo_bytes)
    for root, token_ids, block_size in asked:
        # A root is of one block size; the same bytes under another must not meet it.
        rooted = hashing.root_hash(root, block_size)
        assert hasher.keys(rooted, token_ids, block_size) == plain(rooted, token_ids, block_size)
    assert hasher.memo.size_bytes <= memo_bytes


def test_hashing_is_native_where_it_can_be() -> None:
    if not native or not CPUINFO.exists() or " sha_ni " not in CPUINFO.read_text():
        pytest.skip("no compiler, or no instructions for SHA-256")
    assert chosen.linked is not linked_python


@needs_native
@given(st.binary(min_size=16, max_size=16), st.integers(1, 600), st.integers(0, 5), st.integers(0, 9))
def test_native_links_are_those_of_the_definition(
    parent: bytes, tokens: int, blocks: int, chance: int
) -> None:
    token_ids = random.Random(chance).randbytes(4 * tokens * blocks)
    assert chosen.linked(parent, token_ids, 4 * tokens) == linked_python(parent, token_ids, 4 * tokens)


@needs_native
@pytest.mark.parametrize(
    ("parent", "token_ids", "size"), [(15, 16, 16), (16, 17, 16), (16, 16, 0), (16, 16, -16)]
)
def test_native_links_refuse_parts_of_blocks(parent: int, token_ids: int, size: int) -> None:
    with pytest.raises(ValueError, match="whole blocks"):
        chosen.linked(bytes(parent), bytes(token_ids), size)


def test_pieces_are_short_enough_to_pause_between() -> None:
    pieces = list(Hasher().pieces(ROOTS[0], CONVERSATION, BLOCK))
    assert {len(piece) // hashing.KEY_BYTES for piece in pieces} == {PIECE}
    assert b"".join(pieces) == plain(ROOTS[0], CONVERSATION, BLOCK)


def test_only_what_is_new_is_hashed(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[int] = []

    def counted(parent: bytes, token_ids: bytes, size: int) -> bytes:
        hashed.append(len(token_ids) // size)
        return linked_python(parent, token_ids, size)

    monkeypatch.setattr(chosen, "linked", counted)
    hasher = Hasher()
    turns = [0, 1, 7, 50, 64, 100, 130, 131, 190]  # blocks
    for before, after in pairwise(turns):
        hashed.clear()
        hasher.keys(ROOTS[0], CONVERSATION[: 16 * after], BLOCK)
        assert after - before <= sum(hashed) < after - before + PIECE
    hashed.clear()
    hasher.keys(ROOTS[1], CONVERSATION[: 16 * 190], BLOCK)
    assert sum(hashed) == 190  # another tenant's or another model's: nothing is shared
