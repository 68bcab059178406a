"""Hashing with a memory equals hashing without one, and what was seen before is not hashed again."""

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from warmfleet_proto import hashing
from warmfleet_router.hasher import LARGE, SMALL, Hasher

ROOTS = [bytes([n]) * 16 for n in range(2)]
BLOCK = 4
CONVERSATION = random.Random(1).randbytes(16 * 3 * LARGE)
edges = st.integers(0, len(CONVERSATION) // 4)


def plain(root: bytes, token_ids: bytes, block_size: int) -> bytes:
    return hashing.keys(hashing.chain(root, token_ids, block_size))


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


def test_pieces_are_short_enough_to_pause_between() -> None:
    pieces = list(Hasher().pieces(ROOTS[0], CONVERSATION, BLOCK))
    assert {len(piece) // hashing.KEY_BYTES for piece in pieces} == {LARGE}
    assert b"".join(pieces) == plain(ROOTS[0], CONVERSATION, BLOCK)


def test_only_what_is_new_is_hashed(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[int] = []
    chain = hashing.chain

    def counted(parent: bytes, token_ids: bytes, block_size: int) -> list[bytes]:
        hashed.append(len(token_ids) // 4 // block_size)
        return chain(parent, token_ids, block_size)

    monkeypatch.setattr(hashing, "chain", counted)
    hasher = Hasher()
    turns = [0, 1, 7, 50, 64, 100, 130, 131, 190]  # blocks
    for before, after in pairwise(turns):
        hashed.clear()
        hasher.keys(ROOTS[0], CONVERSATION[: 16 * after], BLOCK)
        assert after - before <= sum(hashed) < after - before + SMALL
    hashed.clear()
    hasher.keys(ROOTS[1], CONVERSATION[: 16 * 190], BLOCK)
    assert sum(hashed) == 190  # another tenant's or another model's: nothing is shared
