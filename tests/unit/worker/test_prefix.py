"""The prefix cache against a plain reference: a dict of chains and an eviction that looks at everything."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from warmfleet_proto.hashing import block_hash, chain, keys
from warmfleet_proto.limits import KEY_BYTES
from warmfleet_worker.blocks import BlockPool
from warmfleet_worker.events import Appeared, PresenceLog, Vanished
from warmfleet_worker.prefix import Node, PrefixCache

SIZE = 2
TOTAL = 10
ROOTS = [b"a" * 16, b"b" * 16]


def packed(tokens: list[int]) -> bytes:
    return b"".join(token.to_bytes(4, "little") for token in tokens)


def fill(cache: PrefixCache, root: bytes, tokens: list[int]) -> list[Node]:
    """Seals all full blocks of ``tokens`` from scratch and leaves them cached."""
    data, nodes, blocks = packed(tokens), [], []
    parent = None
    for i, hashed in enumerate(chain(root, data, SIZE)):
        (block,) = cache.allocate(1) or pytest.fail("no room")
        blocks.append(block)
        node = cache.seal(block, hashed, root, parent, data[i * 8 : (i + 1) * 8])
        assert node is not None
        nodes.append(parent := node)
    cache.release(blocks)
    return nodes


def match(cache: PrefixCache, root: bytes, tokens: list[int]) -> list[int]:
    data = packed(tokens)
    return [node.block for node in cache.match(root, chain(root, data, SIZE), data)]


class PrefixMachine(RuleBasedStateMachine):
    """Users hold chains; the reference keeps every readable chain with the time of its last use."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = PrefixCache(BlockPool(TOTAL), SIZE)
        self.log = PresenceLog(1)
        self.readable: dict[tuple[bytes, tuple[int, ...]], int] = {}  # (root, tokens of the chain) -> block
        self.released: dict[tuple[bytes, tuple[int, ...]], int] = {}
        self.users: list[tuple[bytes, tuple[int, ...], list[int]]] = []
        self.clock = 0
        self.matched: dict[tuple[bytes, bytes], list[Node]] = {}  # by root and prompt, whenever it was

    def pinned(self) -> set[tuple[bytes, tuple[int, ...]]]:
        return {(r, t[: i * SIZE]) for r, t, _ in self.users for i in range(1, len(t) // SIZE + 1)}

    def victim(self) -> tuple[bytes, tuple[int, ...]]:
        """Longest unused among the unpinned chains that no readable chain continues."""
        leaves = [
            key
            for key in self.readable
            if key not in self.pinned()
            and not any(r == key[0] and t[:-SIZE] == key[1] for r, t in self.readable)
        ]
        return min(leaves, key=lambda key: (self.released[key], self.readable[key]))

    @rule(root=st.sampled_from(ROOTS), tokens=st.lists(st.integers(0, 1), min_size=2, max_size=9))
    def use(self, root: bytes, tokens: list[int]) -> None:
        """Match, pin, compute the rest, seal."""
        chain_tokens = tuple(tokens[: len(tokens) // SIZE * SIZE])
        hashes, data = chain(root, packed(tokens), SIZE), packed(tokens)
        nodes = self.cache.match(root, hashes, data)
        assert self.cache.match(root, hashes, data, self.matched.get((root, data), ())) == nodes
        self.matched[root, data] = nodes
        known = [(root, chain_tokens[: i * SIZE]) for i in range(1, len(chain_tokens) // SIZE + 1)]
        hits = [self.readable[key] for key in known if key in self.readable]
        assert [node.block for node in nodes] == hits
        named = keys(chain(root, packed(tokens), SIZE))
        for depth in range(len(hits) + 1):
            assert self.cache.named(root, named[depth * KEY_BYTES :], depth) == nodes[depth:]
        self.cache.pin(hits)
        self.users.append((root, chain_tokens[: len(hits) * SIZE], hits))
        missing = known[len(hits) :]
        blocks = self.allocate(len(missing))
        if blocks is None:
            return
        self.users[-1] = (root, chain_tokens, hits + blocks)
        parent = nodes[-1] if nodes else None
        for key, block in zip(missing, blocks, strict=True):
            tail = packed(list(key[1][-SIZE:]))
            parent = self.cache.seal(
                block, block_hash(parent.hash if parent else root, tail), root, parent, tail
            )
            assert parent is not None
            assert parent.block == block
            self.readable[key], self.released[key] = block, 0

    def allocate(self, count: int) -> list[int] | None:
        pool = self.cache.pool
        if count > pool.free + len(self.readable) - len(self.pinned()):
            assert self.cache.allocate(count) is None
            return None
        victims = set()
        for _ in range(count - pool.free):
            victims.add(key := self.victim())
            del self.readable[key]
        before = self.cache.evictions
        blocks = self.cache.allocate(count)
        assert self.cache.evictions - before == len(victims)
        return blocks

    @rule(data=st.data(), used=st.booleans())
    def leave(self, data: st.DataObject, used: bool) -> None:
        if self.users:
            root, tokens, blocks = self.users.pop(data.draw(st.integers(0, len(self.users) - 1)))
            self.cache.release(blocks, used)
            self.clock += used
            for i in range(1, len(tokens) // SIZE + 1) if used else ():
                self.released[root, tokens[: i * SIZE]] = self.clock

    @rule()
    def publish(self) -> None:
        self.log.publish(self.cache.take_changes())
        told = {h for run in self.log.snapshot().stored for h in run.hashes}
        assert told == {chain(root, packed(list(tokens)), SIZE)[-1] for root, tokens in self.readable}

    @invariant()
    def agrees(self) -> None:
        self.cache.check_integrity()
        assert {n.block for n in self.cache._nodes.values()} == set(self.readable.values())


TestPrefix = PrefixMachine.TestCase
TestPrefix.settings = settings(max_examples=50, deadline=None)


def test_what_an_earlier_match_found_counts_only_while_it_can_be_read() -> None:
    cache, prompt = PrefixCache(BlockPool(TOTAL), SIZE), [1, 2, 3, 4]
    made = fill(cache, ROOTS[0], prompt)
    hashes, data = chain(ROOTS[0], packed(prompt), SIZE), packed(prompt)
    before = cache.match(ROOTS[0], hashes, data)
    assert before == made
    cache.release(cache.allocate(TOTAL) or pytest.fail("no room"))  # evicts all of it
    assert cache.match(ROOTS[0], hashes, data, before) == []
    again = fill(cache, ROOTS[0], prompt)
    assert cache.match(ROOTS[0], hashes, data, before) == again != before


def test_collision_is_a_miss(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two prompts forced to equal hashes: neither the match nor the seal takes one for the other."""
    cache = PrefixCache(BlockPool(TOTAL), SIZE)
    same = [b"h" * 16]
    (block,) = cache.allocate(1) or []
    first = cache.seal(block, same[0], ROOTS[0], None, packed([1, 2]))
    assert cache.match(ROOTS[0], same, packed([1, 2])) == [first]
    assert cache.match(ROOTS[0], same, packed([1, 3])) == []
    assert cache.match(ROOTS[1], same, packed([1, 2])) == []
    assert cache.seal(block, same[0], ROOTS[0], None, packed([1, 3])) is None
    assert cache.seal(block, same[0], ROOTS[1], None, packed([1, 2])) is None


def test_child_counts_only_below_its_own_parent() -> None:
    """A chain whose hashes are all known, but whose second block hangs below another first one."""
    cache = PrefixCache(BlockPool(TOTAL), SIZE)
    data = packed([1, 2, 3, 4])
    (one, two, three) = cache.allocate(3) or []
    a = cache.seal(one, b"a" * 16, ROOTS[0], None, packed([1, 2]))
    b = cache.seal(two, b"b" * 16, ROOTS[0], None, packed([1, 2]))
    child = cache.seal(three, b"c" * 16, ROOTS[0], b, packed([3, 4]))
    assert cache.match(ROOTS[0], [b"b" * 16, b"c" * 16], data) == [b, child]
    assert cache.match(ROOTS[0], [b"a" * 16, b"c" * 16], data) == [a]
    assert cache.match(ROOTS[0], [b"b" * 16, b"c" * 16], packed([1, 2, 3, 5])) == [b], "by its tokens"
    assert cache.match(ROOTS[0], [b"c" * 16], packed([3, 4])) == [], "not at the root"


@given(st.lists(st.sampled_from(range(7)), max_size=4), st.sampled_from(ROOTS))
def test_a_run_goes_on_where_each_block_follows_the_one_before(places: list[int], root: bytes) -> None:
    """Identities in any order, of two chains, and an unknown one."""
    cache = PrefixCache(BlockPool(TOTAL), SIZE)
    nodes = fill(cache, ROOTS[0], [1, 2, 3, 4, 5, 6, 7, 8])
    nodes += fill(cache, ROOTS[0], [9, 9, 9, 9])
    hashes = [*(node.hash for node in nodes), b"x" * 16]
    expected: list[Node] = []
    for place in places:
        if place == 6 or root != ROOTS[0] or (expected and nodes[place].parent is not expected[-1]):
            break
        expected.append(nodes[place])
    assert cache.run(root, [hashes[place] for place in places]) == expected


def test_equal_block_computed_twice_appears_once() -> None:
    cache = PrefixCache(BlockPool(TOTAL), SIZE)
    one, two = cache.allocate(2) or []
    first = cache.seal(one, b"h" * 16, ROOTS[0], None, packed([1, 2]))
    assert cache.seal(two, b"h" * 16, ROOTS[0], None, packed([1, 2])) is first
    assert cache.take_changes() == [Appeared(b"h" * 16, ROOTS[0], 0)]
    cache.release([one, two])
    assert cache.pool.cached == 1
    cache.allocate(TOTAL)
    assert cache.take_changes() == [Vanished(b"h" * 16)]


def test_eviction_takes_children_first_and_the_longest_unused() -> None:
    cache = PrefixCache(BlockPool(6), SIZE)
    fill(cache, ROOTS[0], [1, 2, 3, 4, 5, 6])
    fill(cache, ROOTS[1], [1, 2, 3, 4])
    cache.pin(match(cache, ROOTS[0], [1, 2, 3, 4, 5, 6]))
    cache.release(match(cache, ROOTS[0], [1, 2, 3, 4, 5, 6]))  # used again: now the newer chain
    cache.allocate(2)
    assert len(match(cache, ROOTS[1], [1, 2, 3, 4])) == 1
    cache.allocate(2)
    assert len(match(cache, ROOTS[1], [1, 2, 3, 4])) == 0
    assert len(match(cache, ROOTS[0], [1, 2, 3, 4, 5, 6])) == 2


def test_eviction_list_stays_small() -> None:
    cache = PrefixCache(BlockPool(4), SIZE)
    fill(cache, ROOTS[0], [1, 2, 3, 4])
    for i in range(1000):
        blocks = match(cache, ROOTS[0], [1, 2, 3, 4])
        cache.pin(blocks)
        cache.release(blocks, used=i < 500)
    assert len(cache._leaves) <= 2 * 4 + 1
    cache.check_integrity()


def test_clear_forgets_everything() -> None:
    cache = PrefixCache(BlockPool(4), SIZE)
    fill(cache, ROOTS[0], [1, 2, 3, 4])
    log = PresenceLog(1)
    log.publish(cache.take_changes())
    cache.clear()
    log.publish(cache.take_changes())
    assert (cache.pool.free, len(log), log.digest) == (4, 0, bytes(16))
    assert match(cache, ROOTS[0], [1, 2, 3, 4]) == []
    cache.check_integrity()


def test_a_late_hit_is_one_that_half_the_cache_would_have_missed() -> None:
    cache = PrefixCache(BlockPool(4), SIZE)
    chains = [[i, i] for i in range(5)]
    for tokens in chains[:4]:
        fill(cache, ROOTS[0], tokens)
    cache.pin(match(cache, ROOTS[0], chains[0]))
    assert cache.late_hits == 0, "nothing has been evicted: there is room for all"
    cache.release(match(cache, ROOTS[0], chains[0]))
    fill(cache, ROOTS[0], chains[4])  # evicts the second
    cache.pin(match(cache, ROOTS[0], chains[0]))  # used not long ago
    assert (cache.evictions, cache.late_hits) == (1, 0)
    cache.pin(match(cache, ROOTS[0], chains[2]))  # next to be evicted
    assert cache.late_hits == 1


def test_what_requests_ask_for_goes_after_what_nobody_asks_for() -> None:
    cache = PrefixCache(BlockPool(4), SIZE)
    old, middle, new, newest = [fill(cache, ROOTS[0], [i, i])[0] for i in range(4)]
    cache.wanted = {old.hash: 1, middle.hash: 2}
    fill(cache, ROOTS[0], [10, 10])
    assert (cache.get(old.hash), cache.get(middle.hash), cache.get(new.hash)) == (old, middle, None)
    cache.wanted = {newest.hash: 1}
    fill(cache, ROOTS[0], [11, 11])
    assert cache.get(newest.hash) is newest
    cache.check_integrity()


def test_where_all_is_asked_for_the_oldest_goes() -> None:
    cache = PrefixCache(BlockPool(4), SIZE)
    nodes = [fill(cache, ROOTS[0], [i, i])[0] for i in range(4)]
    cache.wanted = {node.hash: 1 for node in nodes}
    fill(cache, ROOTS[0], [10, 10])
    assert [cache.get(node.hash) for node in nodes] == [None, *nodes[1:]]
    cache.check_integrity()


def test_by_cost_the_cheapest_go_first_until_age_outweighs_it() -> None:
    cache = PrefixCache(BlockPool(6), SIZE)
    cache.cost = lambda depth: 1.0 + depth
    fill(cache, ROOTS[0], [1, 2, 3, 4, 5, 6])  # the last of them costs 3
    for first in (10, 20, 30):
        fill(cache, ROOTS[0], [first, first])
    cache.release(cache.allocate(1) or [])
    assert match(cache, ROOTS[0], [10, 10]) == [], "the oldest of those that cost 1"
    assert len(match(cache, ROOTS[0], [1, 2, 3, 4, 5, 6])) == 3
    for first in range(40, 60):
        fill(cache, ROOTS[0], [first, first])
    assert len(match(cache, ROOTS[0], [1, 2, 3, 4, 5, 6])) < 3, "not for ever"
    cache.check_integrity()
