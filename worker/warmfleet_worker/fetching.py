"""Fetches under way: who waits for them, and what becomes of the blocks that arrive.

A fetch fills blocks that it has pinned, and seals what arrives into the prefix cache; the sequence that
waited is then admitted like any other that finds its prefix readable. So only fetches under way hold pins,
and each of them ends: no two waiting sequences can keep each other out.
"""

import math
from collections import Counter
from dataclasses import dataclass, field
from itertools import count

from warmfleet_worker.fetch import MISSES, Abandon, Arrival, Fetch, Order, Piece, Supply
from warmfleet_worker.pace import Pace
from warmfleet_worker.prefix import Node, PrefixCache
from warmfleet_worker.sequence import Loaded, Sequence
from warmfleet_worker.source import Source

_AGAIN_S = 0.25  # between two looks for one sequence: each walks all of its blocks
_AHEAD_SHARE = 4  # of it is the most for one fetch that nobody waits for
_SHARE = 2  # of the pool is the most that may be on its way, or has come for those who still wait


@dataclass(slots=True)
class Fetched:
    """Totals, in blocks by source."""

    fetches: Counter[Source] = field(default_factory=Counter)  # orders, not blocks
    arrived: Counter[Source] = field(default_factory=Counter)
    wasted: Counter[Source] = field(default_factory=Counter)  # arrived when nobody waited any more
    failed: Counter[Source] = field(default_factory=Counter)  # did not arrive
    late: Counter[Source] = field(default_factory=Counter)  # fetches given up for being slow


@dataclass(slots=True, eq=False)
class _Flight:
    fetch: Fetch
    supply: Supply
    chain: list[Node]  # pinned: the blocks before the first piece, then those that have arrived
    began: float
    deadline: float
    waiters: list[Sequence]
    ahead: bool = False  # goes on though nobody waits
    arrived: int = 0

    @property
    def held(self) -> list[int]:
        """Every pin that it has, one entry each."""
        return [node.block for node in self.chain] + [p.block for p in self.fetch.pieces[self.arrived :]]


class Fetching:
    def __init__(self, cache: PrefixCache, block_size: int) -> None:
        self.supplies: list[Supply] = []  # the nearest first
        self.pace = Pace()
        self.totals = Fetched()
        self.block_bytes = 0  # only to tell how much was loaded
        self._cache = cache
        self._block_size = block_size
        self._flights: dict[int, _Flight] = {}
        self._coming: dict[bytes, _Flight] = {}
        self._landed = 0  # blocks that have come for those who still wait
        self._orders: list[Order] = []
        self._ids = count(1)

    @property
    def busy(self) -> bool:
        return bool(self._flights)

    @property
    def held(self) -> list[int]:
        return [block for flight in self._flights.values() for block in flight.held]

    @property
    def next_deadline(self) -> float:
        return min((f.deadline for f in self._flights.values() if f.waiters), default=math.inf)

    def take_orders(self) -> list[Order]:
        orders, self._orders = self._orders, []
        return orders

    # ---- before a step -------------------------------------------------------------------------

    def reach(self, sequence: Sequence) -> int:
        """Leading blocks that are readable or can be fetched."""
        matched, before = len(self._readable(sequence)), -1
        while before < matched < len(sequence.hashes):
            before = matched
            for supply in self.supplies:
                matched += supply.find(sequence, matched)
        return matched

    def look(self, sequence: Sequence, room: int, now: float) -> None:
        """Starts a fetch for what a waiting sequence lacks, or joins one, where that is worth it.
        ``room`` blocks are left for what runs."""
        if sequence.looked or sequence.waits or not self.supplies:
            return
        sequence.looked_at = now
        nodes = self._readable(sequence)
        if len(nodes) == len(sequence.hashes) or sequence.request.bypasses:
            sequence.looked = True
        elif flight := self._coming.get(sequence.hashes[len(nodes)]):
            if flight.ahead:
                self._hurry(flight, now)
            self._join(flight, sequence)
        elif self._share_left() <= 0:
            return  # again when something has been admitted or has failed
        else:
            sequence.looked = True
            self._start(sequence, nodes, room, now)

    def look_again(self, sequence: Sequence, room: int, now: float) -> bool:
        """Before it is admitted, for what left the device while it waited; true when it has to wait on."""
        if self.supplies and not sequence.tried and now - sequence.looked_at >= _AGAIN_S:
            sequence.looked = False
            self.look(sequence, room, now)
        return sequence.waits

    def expire(self, now: float) -> None:
        """What is too late is computed instead, in other blocks."""
        if now < self.next_deadline:
            return
        for flight in self._flights.values():
            if flight.waiters and flight.deadline <= now:
                source = flight.fetch.source
                self.totals.late[source] += 1
                self.pace.failed(source, now)
                self._abandon(flight)

    def admitted(self, sequence: Sequence) -> None:
        """Or gone: what came for it is no longer kept for it."""
        self._landed -= sequence.landed
        sequence.landed = 0
        if not sequence.waits:
            return
        for flight in self._flights.values():
            if sequence in flight.waiters:
                flight.waiters.remove(sequence)
                sequence.waits = False
                if not flight.waiters and not flight.ahead:
                    self._abandon(flight)

    def bring(self, sequence: Sequence, room: int, now: float) -> int | None:
        """Fetches what a sequence lacks that is not to be computed; the fetch's number. It ends by itself or
        by ``let_go``. None where there is nothing to be had or no room."""
        nodes = self._readable(sequence)
        start, spare = len(nodes), self._cache.available_beside(n.block for n in nodes) - room
        most = min(self._share_left(), self._cache.pool.total // _AHEAD_SHARE, spare)
        if start == len(sequence.hashes) or sequence.hashes[start] in self._coming:
            return None
        for supply in self.supplies:
            found = min(supply.find(sequence, start), most)
            if found > 0:
                flight = self._order(sequence, supply, nodes, found, now, math.inf)
                flight.ahead = True
                return flight.fetch.id
        return None

    def let_go(self, fetch_id: int) -> None:
        """Of a fetch that ``bring`` has begun: only who waits for it needs it now."""
        flight = self._flights.get(fetch_id)
        if flight is not None and flight.ahead:
            flight.ahead = False
            if not flight.waiters:
                self._abandon(flight)

    def _hurry(self, flight: _Flight, now: float) -> None:
        """Now somebody waits: no longer than computing it takes."""
        left = len(flight.fetch.pieces) - flight.arrived
        patience = self.pace.patience_s(flight.fetch.source, left, left * self._block_size)
        flight.deadline = min(flight.deadline, now + patience)

    def _readable(self, sequence: Sequence) -> list[Node]:
        return self._cache.match(sequence.request.root, sequence.hashes, sequence.token_ids.tobytes())

    def _share_left(self) -> int:
        flying = sum(len(flight.fetch.pieces) for flight in self._flights.values())
        return self._cache.pool.total // _SHARE - flying - self._landed

    def _start(self, sequence: Sequence, nodes: list[Node], room: int, now: float) -> None:
        start = len(nodes)
        most = min(self._share_left(), self._cache.available_beside(n.block for n in nodes) - room)
        for supply in self.supplies:
            found = min(supply.find(sequence, start), most)
            tokens = found * self._block_size
            if found <= 0:
                continue
            patience = supply.patience_s(sequence)
            if patience is None and self.pace.worth(supply.source, found, tokens, now):
                patience = self.pace.patience_s(supply.source, found, tokens)
            if patience is not None:
                self._join(self._order(sequence, supply, nodes, found, now, patience), sequence)
                return

    def _order(
        self, sequence: Sequence, supply: Supply, nodes: list[Node], found: int, now: float, patience: float
    ) -> _Flight:
        request, start = sequence.request, len(nodes)
        self._cache.pin([node.block for node in nodes])
        blocks = self._cache.allocate(found)
        assert blocks is not None
        stocks = supply.take(sequence, start, found)
        hashes = sequence.hashes[start : start + found]
        ids = self._token_ids(sequence, start, found)
        pieces = tuple([Piece(*each) for each in zip(hashes, ids, blocks, stocks, strict=True)])
        parent = nodes[-1].hash if nodes else request.root
        fetch = Fetch(next(self._ids), supply.source, request, request.root, parent, start, pieces)
        flight = _Flight(fetch, supply, list(nodes), now, now + patience, [])
        self._flights[fetch.id] = flight
        self._coming.update(dict.fromkeys(hashes, flight))
        self.totals.fetches[supply.source] += 1
        self._orders.append(fetch)
        return flight

    def _token_ids(self, sequence: Sequence, start: int, found: int) -> list[bytes]:
        size = self._block_size
        ends = range(start * size, (start + found) * size, size)
        return [sequence.token_ids[at : at + size].tobytes() for at in ends]

    @staticmethod
    def _join(flight: _Flight, sequence: Sequence) -> None:
        flight.waiters.append(sequence)
        sequence.waits = sequence.looked = sequence.tried = True

    def _abandon(self, flight: _Flight) -> None:
        """Its blocks stay pinned until the carrier has let go of them."""
        self._orders.append(Abandon(flight.fetch.id))
        self._dismiss(flight, again=False)

    def _dismiss(self, flight: _Flight, again: bool) -> None:
        """Nobody waits for it any more; ``again``: they may look for what comes after it."""
        flight.ahead = False
        missing = (len(flight.fetch.pieces) - flight.arrived) * self._block_size
        for sequence in flight.waiters:
            sequence.waits, sequence.looked = False, not again
            sequence.request.uncached += missing  # after all
        flight.waiters = []
        for piece in flight.fetch.pieces:
            if self._coming.get(piece.hash) is flight:
                del self._coming[piece.hash]

    # ---- what carriers say ---------------------------------------------------------------------

    def arrived(self, arrival: Arrival, now: float) -> None:
        flight = self._flights[arrival.id]
        before = flight.arrived
        collided = not self._seal(flight, arrival.arrived)
        came, source = flight.arrived - before, flight.fetch.source
        self.totals.arrived[source] += came
        if flight.waiters:
            self._deal_out(flight, came)
        elif not flight.ahead:
            self.totals.wasted[source] += came
        if arrival.over:
            self._end(flight, arrival.failure, now)
        elif collided and (flight.waiters or flight.ahead):
            self._abandon(flight)

    def _seal(self, flight: _Flight, arrived: int) -> bool:
        """Makes what has arrived readable; false when a hash belongs to other tokens."""
        fetch, cache = flight.fetch, self._cache
        assert flight.arrived <= arrived <= len(fetch.pieces)
        for piece in fetch.pieces[flight.arrived : arrived]:
            parent = flight.chain[-1] if flight.chain else None
            node = cache.seal(piece.block, piece.hash, fetch.root, parent, piece.token_ids)
            if node is None:
                return False
            if node.block != piece.block:  # computed meanwhile
                cache.pin([node.block])
                cache.release([piece.block])
            flight.chain.append(node)
            flight.arrived += 1
        return True

    def _deal_out(self, flight: _Flight, came: int) -> None:
        flight.waiters[0].landed += came
        self._landed += came
        for sequence in flight.waiters:
            if sequence.request.admitted is None:
                sequence.request.brought[flight.fetch.source] += came * self._block_size

    def _note_load(self, flight: _Flight, now: float) -> None:
        """For the router's price of loading, once a fetch; pulls have their own account."""
        request = flight.waiters[0].request
        if flight.fetch.source != Source.PEER and request.admitted is None:
            seconds, size = request.loaded or (0.0, 0)
            size += flight.arrived * self.block_bytes
            request.loaded = Loaded(seconds + now - flight.began, size)

    def _end(self, flight: _Flight, failure: str, now: float) -> None:
        fetch = flight.fetch
        del self._flights[fetch.id]
        if failure:
            self.totals.failed[fetch.source] += len(fetch.pieces) - flight.arrived
            if failure not in MISSES:
                self.pace.failed(fetch.source, now)
        elif flight.waiters:
            self.pace.brought(fetch.source, len(fetch.pieces), now - flight.began)
            self._note_load(flight, now)
        self._dismiss(flight, again=not failure)
        self._cache.release(flight.held)
        flight.supply.give_back(fetch)
