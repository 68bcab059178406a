"""A modelled worker's host memory: blocks that its device pool gave up, least recently used first out.

Children are given up before their parents, so the order of arrival keeps prefixes whole.
"""

from collections import OrderedDict
from collections.abc import Sequence

from warmfleet_router.replay.cache import Node


class HostTier:
    def __init__(self, total: int) -> None:
        self.total = total
        self.stored: list[Node] = []  # since they were last taken
        self.removed: list[Node] = []
        self.evictions = 0
        self.late_hits = 0
        self._held: OrderedDict[int, tuple[Node, int]] = OrderedDict()  # with the time of the last use
        self._clock = 0

    def holds(self, node: Node) -> bool:
        return node.key in self._held

    def put(self, node: Node) -> None:
        self._clock += 1
        if node.key in self._held:
            self._held.move_to_end(node.key)
        else:
            self.stored.append(node)
        self._held[node.key] = node, self._clock
        if len(self._held) > self.total:
            _, (oldest, _) = self._held.popitem(last=False)
            self.evictions += 1
            self.removed.append(oldest)

    def run(self, keys: Sequence[int], start: int) -> int:
        """How many of ``keys`` from ``start`` on it holds without a gap."""
        end = start
        while end < len(keys) and keys[end] in self._held:
            end += 1
        return end - start

    def use(self, keys: Sequence[int]) -> None:
        """They have been read; the first of them is now the last to go."""
        if self._held:
            oldest = next(iter(self._held.values()))[1]
            late = (self._clock + oldest) / 2
            self.late_hits += sum(self.evictions and self._held[key][1] < late for key in keys)
        self._clock += 1
        for key in reversed(keys):
            self._held[key] = self._held[key][0], self._clock
            self._held.move_to_end(key)
