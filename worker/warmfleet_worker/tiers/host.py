"""The host tier: which blocks lie in which slot of the host's memory. It touches no memory itself.

It is a prefix cache of its own: a block is kept only below the one before it, and the ends of chains that
were not used for longest go first.
"""

from warmfleet_worker.blocks import BlockPool
from warmfleet_worker.events import Tier
from warmfleet_worker.fetch import Fetch, Stock, Supply
from warmfleet_worker.prefix import Node, PrefixCache, chain_to
from warmfleet_worker.sequence import Sequence
from warmfleet_worker.source import Source


class HostTier(Supply):
    source = Source.HOST

    def __init__(self, slots: int, block_size: int) -> None:
        self.cache = PrefixCache(BlockPool(slots), block_size, Tier.HOST)
        self.corrupt = 0
        self.sums = [b""] * slots  # of the copies; empty: not to be read

    def find(self, sequence: Sequence, start: int) -> int:
        nodes = self._match(sequence)
        found = 0
        for node in nodes[start:]:
            if not self.sums[node.block]:
                break
            found += 1
        return found

    def take(self, sequence: Sequence, start: int, count: int) -> list[Stock]:
        nodes = self._match(sequence)[: start + count]
        self.cache.pin([node.block for node in nodes])
        return [Stock(node.block, self.sums[node.block]) for node in nodes[start:]]

    def give_back(self, fetch: Fetch) -> None:
        last = self.cache.at(fetch.pieces[-1].stock.slot)
        assert last is not None
        self.cache.release(chain_to(last))

    def condemn(self, slot: int) -> None:
        """Its copy is wrong: it is not read again before it is made anew (``WriteBack``)."""
        self.corrupt += 1
        self.sums[slot] = b""

    def _match(self, sequence: Sequence) -> list[Node]:
        return self.cache.match(sequence.request.root, sequence.hashes, sequence.token_ids.tobytes())
