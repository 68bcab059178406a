"""One fetch under way: which of its blocks are in the pool, and the chain of blocks that they continue.

Blocks come from the front. If a sequence computes the front meanwhile (see ``racing``), they come from the
end, and become readable when all blocks before them have been computed.
"""

from dataclasses import dataclass, field

from warmfleet_worker.fetch import Fetch, Supply
from warmfleet_worker.prefix import Node, PrefixCache
from warmfleet_worker.sequence import Sequence


@dataclass(slots=True, eq=False)
class Flight:
    fetch: Fetch
    supply: Supply
    chain: list[Node]  # pinned: the blocks before the first piece, then those that are settled
    began: float
    deadline: float
    expected_s: float | None  # seconds that it is expected to take, if its supply knows
    waiters: list[Sequence] = field(default_factory=list)
    ahead: bool = False  # it goes on though no sequence waits for it
    racer: Sequence | None = None  # the sequence that computes its front
    front: int = 0  # leading pieces that have come
    back: int = 0  # trailing pieces that have come
    settled: int = 0  # leading pieces that are readable, whether they were brought or computed
    used: int = 0  # of those, the ones that were brought
    forgotten: int = 0  # leading pieces for which no other sequence may join any more
    passed: list[int] = field(default_factory=list)  # blocks for pieces that were computed before they came
    came_at: float = 0.0  # when the latest pieces came
    over: str | None = None  # the failure (or "") that the carrier ended with, while a racer uses what came

    @property
    def pieces(self) -> int:
        return len(self.fetch.pieces)

    @property
    def there(self) -> int:
        """Pieces that have come."""
        return min(self.front + self.back, self.pieces)

    @property
    def left(self) -> int:
        return self.pieces - self.there

    @property
    def tail(self) -> int:
        """How many blocks of the chain lie before those that have come from the end."""
        return self.fetch.depth + self.pieces - self.back

    @property
    def wanted(self) -> bool:
        return bool(self.waiters or self.ahead or self.racer)

    @property
    def held(self) -> list[int]:
        """Every pin that it has, one entry each."""
        pieces = self.fetch.pieces[self.settled :]
        return [node.block for node in self.chain] + self.passed + [piece.block for piece in pieces]

    def settle(self, cache: PrefixCache) -> bool:
        """Makes what has come readable, up to the first piece that is missing. False if a hash turns out to
        belong to other tokens.

        If a piece was computed meanwhile, the chain goes on with that block. The block that had been taken
        for it stays pinned, since the carrier may still write to it.
        """
        pieces, root, tail = self.fetch.pieces, self.fetch.root, self.pieces - self.back
        self._settle_new(cache)
        parent = self.chain[-1] if self.chain else None
        for place in range(self.settled, len(pieces)):
            piece, here = pieces[place], place < self.front or place >= tail
            if here:
                node = cache.seal(piece.block, piece.hash, root, parent, piece.token_ids)
            else:
                node = cache.get(piece.hash) if self.racer else None
                if node is None:
                    return True
            if node is None or not (here or node.continues(root, parent, piece.token_ids)):
                return False
            if node.block == piece.block:
                self.used += 1
            else:
                self._pass(node, piece.block, here, cache)
            self.chain.append(node)
            self.settled += 1
            parent = node
        return True

    def _settle_new(self, cache: PrefixCache) -> None:
        """The same, quicker, up to the first piece that somebody has computed meanwhile."""
        come = self.fetch.pieces[self.settled : self.front]
        parent = self.chain[-1] if self.chain else None
        made = cache.seal_new([(p.block, p.hash, p.token_ids) for p in come], self.fetch.root, parent)
        self.chain += made
        self.used += len(made)
        self.settled += len(made)

    def _pass(self, node: Node, block: int, here: bool, cache: PrefixCache) -> None:
        """The chain goes on in another block than the piece's."""
        cache.pin([node.block])
        if here:
            cache.release([block])
        else:
            self.passed.append(block)
