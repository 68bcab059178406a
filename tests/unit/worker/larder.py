"""A source of blocks for the pure scheduler: keeps what the sim engine computed, gives it back when told."""

from collections import deque
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from warmfleet_proto.limits import TOKEN_BYTES
from warmfleet_worker.engine.sim import SimEngine
from warmfleet_worker.fetch import Arrival, Fetch, Order, Stock, Turn
from warmfleet_worker.prefix import PrefixCache
from warmfleet_worker.sequence import Sequence
from warmfleet_worker.source import Source


class Larder:
    """Supply and carrier in one. Nothing arrives before ``bring``."""

    def __init__(self, engine: SimEngine, source: Source = Source.PEER) -> None:
        self.source = source
        self.shelf: dict[bytes, tuple[bytes, npt.NDArray[np.uint64]]] = {}  # token ids and values
        self.lent = 0  # blocks taken and not given back
        self.begun: list[Fetch] = []
        self.abandoned: list[int] = []
        self.patience: float | None = None  # None: as long as computing would take
        self.turned: list[int] = []
        self._under_way: deque[list[int]] = deque()  # index into begun, pieces from the front, from the end
        self._engine = engine

    # ---- as a supply

    def find(self, sequence: Sequence, start: int) -> int:
        size, found = self._engine.block_size, 0
        for i, block_hash in enumerate(sequence.hashes[start:], start):
            kept = self.shelf.get(block_hash)
            if kept is None or kept[0] != sequence.token_ids[i * size : (i + 1) * size].tobytes():
                break
            found += 1
        return found

    def patience_s(self, sequence: Sequence) -> float | None:
        return self.patience

    def expected_s(self, sequence: Sequence, count: int) -> float | None:
        return None

    def take(self, sequence: Sequence, start: int, count: int) -> list[Stock]:
        self.lent += count
        return [Stock() for _ in range(count)]

    def give_back(self, fetch: Fetch) -> None:
        self.lent -= len(fetch.pieces)

    # ---- as a carrier

    def keep(self, cache: PrefixCache) -> None:
        """A copy of all that is readable."""
        for node in cache._nodes.values():
            assert len(node.token_ids) == self._engine.block_size * TOKEN_BYTES
            self.shelf[node.hash] = (node.token_ids, self._engine.pool[node.block].copy())

    def order(self, orders: Iterable[Order]) -> None:
        for order in orders:
            if isinstance(order, Fetch):
                self._under_way.append([len(self.begun), 0, 0])
                self.begun.append(order)
            elif isinstance(order, Turn):
                self.turned.append(order.id)
            else:
                self.abandoned.append(order.id)

    def bring(self, most: int = 1_000_000, failure: str = "", *, over: bool = True) -> Arrival | None:
        """The next blocks of the oldest fetch, at most so many; without ``over`` the end is owed still."""
        if not self._under_way:
            return None
        at, fetch = self._under_way[0], self.begun[self._under_way[0][0]]
        _, front, back = at
        count, end = min(most, len(fetch.pieces) - front - back), len(fetch.pieces) - back
        turned = fetch.id in self.turned
        for piece in fetch.pieces[end - count : end] if turned else fetch.pieces[front : front + count]:
            self._engine.pool[piece.block] = self.shelf[piece.hash][1]
        at[2 if turned else 1] += count
        over = over or bool(failure)
        if over:
            self._under_way.popleft()
        _, front, back = at
        whole = front + back == len(fetch.pieces) or fetch.id in self.abandoned
        return Arrival(fetch.id, front, over, "" if whole else failure or "cut short", back)
