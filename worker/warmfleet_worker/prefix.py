"""The prefix cache: which block of the pool holds the KV of which BlockHash. Prompts match from the root on.

Eviction takes leaves first. Of these it takes the least recently used, or, with ``cost``, what is cheapest to
compute again, aged by what was evicted before (GreedyDual, Young 1994). A block that a request waits for has
a second chance.

A hash hit counts only if the parent and the token ids agree as well, so that a collision is a miss. Whoever
pins a block pins its whole chain. So every unpinned block can be evicted, children before parents, and
``allocate`` can give all blocks that are free or cached.
"""

import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence

from msgspec import Struct
from warmfleet_proto.limits import KEY_BYTES, TOKEN_BYTES

from warmfleet_worker.blocks import BlockPool
from warmfleet_worker.events import Appeared, Change, Tier, Vanished, Wiped


class Node(Struct, eq=False):
    """A readable block: one with a BlockHash, filled by a finished step."""

    block: int
    hash: bytes
    root: bytes
    parent: "Node | None"
    depth: int
    token_ids: bytes  # packed u32
    tier: Tier = Tier.DEVICE
    children: int = 0
    stamp: int = 0  # when it was last used
    rank: float = 0.0  # of the blocks that may be evicted, the one with the lowest goes first

    def continues(self, root: bytes, parent: "Node | None", token_ids: bytes) -> bool:
        return self.parent is parent and self.token_ids == token_ids and self.root == root


class PrefixCache:
    def __init__(self, pool: BlockPool, block_size: int, tier: Tier = Tier.DEVICE) -> None:
        self.pool = pool
        self.tier = tier
        self.cost: Callable[[int], float] | None = None  # seconds to compute a block at a depth; None: LRU
        self.wanted: Mapping[bytes, int] = {}  # hashes that requests ask for, and how many requests do
        self.evictions = 0
        self.late_hits = 0  # on blocks idle for more than half as long as the next one to be evicted
        self._block_bytes = block_size * TOKEN_BYTES
        self._nodes: dict[bytes, Node] = {}
        self._named: dict[bytes, Node] = {}  # by key; of two nodes with one key the later
        self._unnamed: list[Node] = []  # not in ``_named`` yet: put there when nobody waits for it
        self._by_block: list[Node | None] = [None] * pool.total
        self._floor = 0.0  # the highest rank that was evicted
        self._leaves: list[tuple[float, int, int]] = []  # heap of rank, stamp, block; stale ones are skipped
        self._clock = 0  # counts releases: only the order matters
        self._changes: list[Node | Vanished | Wiped] = []

    @property
    def available(self) -> int:
        return self.pool.free + self.pool.cached

    def available_beside(self, blocks: Iterable[int]) -> int:
        """What could be allocated if ``blocks`` were pinned."""
        return self.available - self.pool.idle(blocks)

    def get(self, block_hash: bytes) -> Node | None:
        """The readable block of this hash. The caller has to compare what tokens it stands for."""
        return self._nodes.get(block_hash)

    def named(self, root: bytes, keys: bytes, depth: int) -> list[Node]:
        """The longest readable run, from position ``depth`` of a chain on, of blocks that go by these packed
        8-byte keys."""
        self._name()
        found: list[Node] = []
        for start in range(0, len(keys), KEY_BYTES):
            node = self._named.get(keys[start : start + KEY_BYTES])
            follows = node and (node.parent is found[-1] if found else node.depth == depth)
            if node is None or not follows or node.root != root:
                break
            found.append(node)
        return found

    def run(self, root: bytes, hashes: Sequence[bytes]) -> list[Node]:
        """The longest readable run of these identities, wherever in a chain it begins."""
        found = self._up_to(hashes[-1], len(hashes)) if hashes else []
        if [node.hash for node in found] != hashes:
            found = [*iter(map(self._nodes.get, hashes).__next__, None)]  # up to the first that is unknown
            parents = [node.parent for node in found[1:]]
            if parents != found[:-1]:
                del found[1 + next(i for i, parent in enumerate(parents) if parent is not found[i]) :]
        return found if found and found[0].root == root else []

    def _up_to(self, block_hash: bytes, count: int) -> list[Node]:
        """The last ``count`` blocks of the chain that ends there: most runs are readable to their end, and
        each block leads to the one before it more quickly than its hash does."""
        found: list[Node] = []
        node = self._nodes.get(block_hash)
        while node is not None and len(found) < count:
            found.append(node)
            node = node.parent
        found.reverse()
        return found

    def holds(self, nodes: Sequence[Node]) -> bool:
        """Whether each can be read where it was. Nodes are equal to themselves alone."""
        return [self._by_block[node.block] for node in nodes] == nodes

    def at(self, block: int) -> Node | None:
        """The node that can be read in a block of the pool."""
        return self._by_block[block]

    def match(
        self, root: bytes, hashes: Sequence[bytes], token_ids: bytes, known: Sequence[Node] = ()
    ) -> list[Node]:
        """The longest readable prefix of a chain. ``hashes`` of the full blocks of packed ``token_ids``;
        ``known`` is what an earlier match found of them."""
        found = list(known) if self.holds(known) else []
        for node in map(self._nodes.get, hashes[len(found) :]):
            if node is None:
                break
            found.append(node)
        return found if self._is_chain(found, root, token_ids) else self._proven(found, root, token_ids)

    def _is_chain(self, nodes: Sequence[Node], root: bytes, token_ids: bytes) -> bool:
        """Whether all of them continue one another, with these tokens. Children have their parents' root."""
        held = b"".join([node.token_ids for node in nodes])
        parents = [node.parent for node in nodes[1:]]
        begins = not nodes or (nodes[0].parent is None and nodes[0].root == root)
        return begins and parents == nodes[:-1] and held == token_ids[: len(held)]

    def _proven(self, nodes: Iterable[Node], root: bytes, token_ids: bytes) -> list[Node]:
        """The nodes before the first one that stands for other tokens."""
        found: list[Node] = []
        parent, size = None, self._block_bytes
        for i, node in enumerate(nodes):
            if not node.continues(root, parent, token_ids[i * size : (i + 1) * size]):
                break
            found.append(node)
            parent = node
        return found

    def allocate(self, count: int) -> list[int] | None:
        """``count`` pinned blocks without content, evicting as needed; None when there are not so many."""
        if count > self.available:
            return None
        while self.pool.free < count:
            self._evict()
        return self.pool.take(count)

    def seal(
        self, block: int, block_hash: bytes, root: bytes, parent: Node | None, token_ids: bytes
    ) -> Node | None:
        """Makes a filled, pinned block readable. When an equal block is readable already, that one is
        returned and ``block`` stays private; None when the hash belongs to other tokens."""
        node = self._nodes.get(block_hash)
        if node is not None:
            return node if node.continues(root, parent, token_ids) else None
        (node,) = self.seal_new([(block, block_hash, token_ids)], root, parent)
        return node

    def seal_new(
        self, filled: Iterable[tuple[int, bytes, bytes]], root: bytes, parent: Node | None
    ) -> list[Node]:
        """The same for blocks (number, BlockHash, token ids) of a chain one after another, up to the first
        whose hash is known already."""
        nodes, by_block, tier = self._nodes, self._by_block, self.tier
        depth = parent.depth + 1 if parent else 0
        made: list[Node] = []
        for block, block_hash, token_ids in filled:
            if block_hash in nodes:
                break
            if parent is not None:
                parent.children += 1
            parent = Node(block, block_hash, root, parent, depth, token_ids, tier)
            nodes[block_hash] = by_block[block] = parent
            made.append(parent)
            depth += 1
        self.pool.keep([node.block for node in made])
        self._changes += made
        self._unnamed += made
        return made

    def pin(self, blocks: Sequence[int]) -> None:
        if self.evictions:
            self._count_late(blocks)
        self.pool.pin(blocks)

    def release(self, blocks: Sequence[int], used: bool = True) -> None:
        """Takes one pin from each. Readable blocks stay cached, others are free. If they were not ``used``
        here but only copied to where they will be, they are evicted as soon as they would have been
        anyway."""
        self._clock += 1
        by_block = self._by_block
        if used:
            self._stamp([node for block in blocks if (node := by_block[block])])
        loose = self.pool.unpin(blocks)
        for leaf in [node for block in loose if (node := by_block[block]) and not node.children]:
            self._offer(leaf)

    def _stamp(self, nodes: Sequence[Node]) -> None:
        """They have just been used."""
        clock, cost = self._clock, self.cost
        for node in nodes:
            node.stamp = clock
            node.rank = clock
        if cost:
            for node in nodes:
                node.rank = self._floor + cost(node.depth)

    def take_changes(self) -> list[Change]:
        """What became readable or ceased to be since the last call, in order."""
        self._name()
        changes, self._changes = self._changes, []
        return [_appeared(change) if isinstance(change, Node) else change for change in changes]

    def clear(self) -> None:
        """Forgets every block. The caller has made sure that none is pinned."""
        assert self.pool.pinned == 0
        for node in self._nodes.values():
            self._by_block[node.block] = None
            self.pool.drop(node.block)
        self._nodes.clear()
        self._named.clear()
        self._unnamed.clear()
        self._leaves.clear()
        self._changes.append(Wiped())

    def _name(self) -> None:
        for node in self._unnamed:
            if self._nodes.get(node.hash) is node:
                self._named[node.hash[:KEY_BYTES]] = node
        self._unnamed.clear()

    def _offer(self, node: Node) -> None:
        """Lists a node for eviction when nothing holds it: neither a pin nor a child."""
        if node.children or self.pool.is_pinned(node.block):
            return
        if len(self._leaves) > 2 * self.pool.total:
            self._leaves = [entry for entry in set(self._leaves) if self._leaf(*entry[1:])]
            heapq.heapify(self._leaves)
        heapq.heappush(self._leaves, (node.rank, node.stamp, node.block))

    def _leaf(self, stamp: int, block: int) -> Node | None:
        node = self._by_block[block]
        if node is None or node.stamp != stamp or node.children or self.pool.is_pinned(block):
            return None
        return node

    def _count_late(self, blocks: Iterable[int]) -> None:
        """Counts hits that a cache of half the size would have missed. With ``evictions`` they tell how
        likely an evicted block is missed."""
        oldest = self._oldest()
        if oldest is None:
            return
        late = (self._clock + oldest.stamp) / 2
        idle = (self._by_block[block] for block in blocks if not self.pool.is_pinned(block))
        self.late_hits += sum(node is not None and node.stamp < late for node in idle)

    def _oldest(self) -> Node | None:
        """The next one to be evicted."""
        while self._leaves:
            if node := self._leaf(*self._leaves[0][1:]):
                return node
            heapq.heappop(self._leaves)
        return None

    def _victim(self) -> Node:
        """The next leaf that nobody waits for. Those before it count as just used; one that comes up a second
        time is taken all the same."""
        before = self._clock
        while True:
            node = self._oldest()
            assert node is not None, "nothing is cached"
            if node.stamp > before or node.hash not in self.wanted:
                return node
            heapq.heappop(self._leaves)
            self._clock += 1
            self._stamp((node,))
            self._offer(node)

    def _evict(self) -> None:
        node = self._victim()
        heapq.heappop(self._leaves)
        self._floor = max(self._floor, node.rank)
        del self._nodes[node.hash]
        if self._named.get(node.hash[:KEY_BYTES]) is node:
            del self._named[node.hash[:KEY_BYTES]]
        self._by_block[node.block] = None
        self.pool.drop(node.block)
        self.evictions += 1
        self._changes.append(Vanished(node.hash, self.tier))
        if node.parent is not None:
            node.parent.children -= 1
            self._offer(node.parent)

    def check_integrity(self) -> None:
        """Raises AssertionError when the tree, the pool and the eviction list disagree."""
        self.pool.check_integrity()
        children: dict[bytes, int] = {}
        listed = set(self._leaves)
        for node in self._nodes.values():
            assert self._by_block[node.block] is node
            pinned = self.pool.is_pinned(node.block)
            if node.parent is not None:
                assert self._nodes.get(node.parent.hash) is node.parent, "evicted before its child"
                assert node.parent.root == node.root
                assert not pinned or self.pool.is_pinned(node.parent.block), "pinned below an unpinned block"
                children[node.parent.hash] = children.get(node.parent.hash, 0) + 1
            assert pinned or node.children or (node.rank, node.stamp, node.block) in listed
        assert all(node.children == children.get(node.hash, 0) for node in self._nodes.values())
        assert sum(node is not None for node in self._by_block) == len(self._nodes)
        assert all(self._nodes.get(node.hash) is node for node in self._named.values())


def _appeared(node: Node) -> Appeared:
    return Appeared(node.hash, node.parent.hash if node.parent else node.root, node.depth, node.tier)


def chain_to(node: Node) -> list[int]:
    """The blocks of a chain from its first one to ``node``."""
    blocks = []
    at: Node | None = node
    while at is not None:
        blocks.append(at.block)
        at = at.parent
    return blocks[::-1]
