"""A modelled worker's blocks: the rules of the worker's own pool and prefix cache, on keys alone.

A block is free, private to one job, or readable under a key; readable ones are pinned or cached, and
cached ones are evicted least recently used first, or cheapest to compute first, children before parents. A
key stands for a whole prefix, so nothing needs comparing here.
"""

import heapq
from collections.abc import Callable, Container, Iterable, Sequence
from itertools import count


class Node:
    __slots__ = ("children", "depth", "key", "parent", "pins", "rank", "stamp")

    def __init__(self, key: int, parent: "Node | None") -> None:
        self.key = key
        self.parent = parent
        self.depth: int = parent.depth + 1 if parent else 0
        self.children = 0
        self.pins = 0
        self.stamp = 0
        self.rank = 0.0  # the lowest goes first


class Cache:
    def __init__(
        self,
        total: int,
        spill: Callable[[Node], None] | None = None,
        cost: Callable[[int], float] | None = None,
    ) -> None:
        """``spill`` takes what is evicted. ``cost`` of computing a block at a depth anew: the cheapest go
        first, aged as the worker's own cache does (GreedyDual); None: the least recently used."""
        self.total = total
        self.free = total
        self._spill = spill
        self.cached = 0
        self.stored: list[Node] = []  # since they were last taken
        self.removed: list[Node] = []
        self.evictions = 0
        self.late_hits = 0
        self.wanted: Container[int] = ()  # by the jobs here
        self._nodes: dict[int, Node] = {}
        self._cost = cost
        self._floor = 0.0  # rank of the last one evicted
        self._leaves: list[tuple[float, int, int, Node]] = []
        self._order = count()
        self._clock = 0

    def __len__(self) -> int:
        return len(self._nodes)

    @property
    def available(self) -> int:
        return self.free + self.cached

    def keys(self) -> list[int]:
        """Keys of all readable blocks."""
        return list(self._nodes)

    def holds(self, node: Node) -> bool:
        return self._nodes.get(node.key) is node

    def match(self, keys: Sequence[int]) -> list[Node]:
        found = []
        for key in keys:
            node = self._nodes.get(key)
            if node is None:
                break
            found.append(node)
        return found

    def take(self, blocks: int) -> bool:
        """Makes ``blocks`` private to the caller, evicting as needed; False when there are not so many."""
        if blocks > self.free + self.cached:
            return False
        while self.free < blocks:
            self._evict()
        self.free -= blocks
        return True

    def overdraw(self) -> None:
        """One more private block where there is none: what is given back next makes up for it."""
        self.free -= 1

    def give(self, blocks: int) -> None:
        """Private blocks back."""
        self.free += blocks

    def seal(self, key: int, parent: Node | None) -> tuple[Node, bool]:
        """A private block becomes readable and stays pinned; where its key is readable already (False),
        that node is pinned instead, and the private block is still the caller's."""
        node = self._nodes.get(key)
        if node is not None:
            self.pin((node,))
            return node, False
        node = self._nodes[key] = Node(key, parent)
        node.pins = 1
        if parent is not None:
            parent.children += 1
        self.stored.append(node)
        return node, True

    def take_in(self, keys: Sequence[int]) -> int:
        """A prefix that has been brought; how much of it has become readable: what there is room for."""
        nodes = self.match(keys)
        self.pin(nodes)
        missing = min(len(keys) - len(nodes), self.available)
        self.take(missing)
        for key in keys[len(nodes) : len(nodes) + missing]:
            nodes.append(self.seal(key, nodes[-1] if nodes else None)[0])
        self.unpin(nodes)
        return missing

    def pin(self, nodes: Sequence[Node]) -> None:
        if self.evictions and (oldest := self._oldest()):
            late = (self._clock + oldest.stamp) / 2
            self.late_hits += sum(not node.pins and node.stamp < late for node in nodes)
        for node in nodes:
            if not node.pins:
                self.cached -= 1
            node.pins += 1

    def unpin(self, nodes: Iterable[Node], used: bool = True) -> None:
        """Not ``used``: copied elsewhere, and evicted as soon as they would have been."""
        self._clock += 1
        for node in nodes:
            node.pins -= 1
            if used:
                self._stamp(node)
            if not node.pins:
                self.cached += 1
                self._offer(node)

    def _offer(self, node: Node) -> None:
        if not node.children and not node.pins:
            heapq.heappush(self._leaves, (node.rank, node.stamp, next(self._order), node))

    def _oldest(self) -> Node | None:
        while self._leaves:
            _, stamp, _, node = self._leaves[0]
            if node.stamp == stamp and not node.children and not node.pins and self.holds(node):
                return node
            heapq.heappop(self._leaves)
        return None

    def _victim(self) -> Node:
        """The block to evict, as in the worker's own cache: one that somebody waits for has a second
        chance."""
        before = self._clock
        while True:
            node = self._oldest()
            assert node is not None
            if node.stamp > before or node.key not in self.wanted:
                return node
            heapq.heappop(self._leaves)
            self._clock += 1
            self._stamp(node)
            self._offer(node)

    def _stamp(self, node: Node) -> None:
        node.stamp = self._clock
        node.rank = self._floor + self._cost(node.depth) if self._cost else self._clock

    def _evict(self) -> None:
        node = self._victim()
        heapq.heappop(self._leaves)
        self._floor = max(self._floor, node.rank)
        del self._nodes[node.key]
        self.cached -= 1
        self.free += 1
        self.evictions += 1
        self.removed.append(node)
        if self._spill:
            self._spill(node)
        if node.parent is not None:
            node.parent.children -= 1
            self._offer(node.parent)
