"""Fetches under way: who waits for them, and what becomes of the blocks that arrive.

A fetch takes and pins the blocks that it will fill, and makes what arrives readable in the prefix cache. The
sequence that waited for it is then admitted like any other that finds its prefix readable. So only fetches
under way hold pins, never waiting sequences; and as each fetch ends, no two of these can block each other.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count

from warmfleet_proto.limits import TOKEN_BYTES

from warmfleet_worker import racing
from warmfleet_worker.admission import readable
from warmfleet_worker.fetch import MISSES, Abandon, Arrival, Fetch, Order, Piece, Supply, Turn
from warmfleet_worker.flight import Flight
from warmfleet_worker.pace import Pace
from warmfleet_worker.prefix import Node, PrefixCache
from warmfleet_worker.sequence import Loaded, Request, Sequence
from warmfleet_worker.source import Source

_AGAIN_S = 0.25  # between two looks for one sequence: each walks all of its blocks
_LOSSES = 3  # so often what was fetched for a sequence may be displaced; after that it computes
# At most 1 / _SHARE of the pool may be on its way or have come for sequences that still wait; at most
# 1 / _AHEAD_SHARE of it may be taken by one fetch that nobody waits for.
_SHARE = 2
_AHEAD_SHARE = 4


@dataclass(slots=True)
class Fetched:
    """Totals, in blocks by source."""

    fetches: Counter[Source] = field(default_factory=Counter)  # orders, not blocks
    arrived: Counter[Source] = field(default_factory=Counter)
    wasted: Counter[Source] = field(default_factory=Counter)  # arrived when nobody waited any more
    failed: Counter[Source] = field(default_factory=Counter)  # did not arrive
    late: Counter[Source] = field(default_factory=Counter)  # fetches given up for being slow


class Fetching:
    def __init__(self, cache: PrefixCache, block_size: int) -> None:
        self.supplies: list[Supply] = []  # the nearest first
        self.pace = Pace()
        self.totals = Fetched()
        self.block_bytes = 0  # only to tell how much was loaded
        self._cache = cache
        self._block_size = block_size
        self._flights: dict[int, Flight] = {}
        self._races: dict[Sequence, Flight] = {}
        self.next_race = math.inf  # when another race may be worth it
        self._coming: dict[bytes, Flight] = {}
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
        matched, before = len(readable(sequence, self._cache)), -1
        while before < matched < len(sequence.hashes):
            before = matched
            for supply in self.supplies:
                matched += supply.find(sequence, matched)
        return matched

    def look(self, sequence: Sequence, room: int, now: float, fits: bool = False) -> None:
        """Starts a fetch for what a waiting sequence lacks, or joins one that is under way, if that is worth
        it. ``room`` blocks are left for what runs. ``fits``: it could be admitted at once."""
        if sequence.looked or sequence.waits or not self.supplies:
            return
        sequence.looked_at = now
        nodes = readable(sequence, self._cache)
        if len(nodes) < sequence.reach:
            self._lose(sequence)
        sequence.reach = len(nodes)
        if len(nodes) == len(sequence.hashes) or sequence.request.bypasses or sequence.losses > _LOSSES:
            sequence.looked = True
        elif flight := self._coming.get(sequence.hashes[len(nodes)]):
            if flight.ahead:
                self._hurry(flight, now)
            self._join(flight, sequence)
        else:
            sequence.looked = self._start(sequence, nodes, room, now, fits)

    def lacks(self, sequence: Sequence) -> bool:
        """Whether something is still missing that was to be fetched for it: because it has been displaced
        again while the sequence waited, or because there was no room for it."""
        if not self.supplies or sequence.losses > _LOSSES:
            return False
        return len(readable(sequence, self._cache)) < sequence.reach

    def _lose(self, sequence: Sequence) -> None:
        """Some of what came for it has been displaced."""
        sequence.losses += sequence.landed > 0
        self._landed -= sequence.landed
        sequence.landed = 0

    def look_again(self, sequence: Sequence, room: int, now: float, fits: bool) -> bool:
        """Looks again before the sequence is admitted; True if it has to go on waiting. ``fits``: it lacks
        something, and there are blocks enough to admit it at once."""
        late = not sequence.tried and now - sequence.looked_at >= _AGAIN_S
        if self.supplies and (fits or late):
            sequence.looked = False
            self.look(sequence, room, now, fits)
        return sequence.waits

    def expire(self, now: float) -> None:
        """Gives up fetches that take too long. What they were to bring is computed, in other blocks."""
        if now < self.next_deadline:
            return
        for flight in self._flights.values():
            if flight.waiters and flight.deadline <= now:
                source = flight.fetch.source
                self.totals.late[source] += 1
                self.pace.failed(source, now)
                self._abandon(flight)

    def admitted(self, sequence: Sequence) -> None:
        """The sequence runs, or has gone: it waits for nothing any more."""
        self._landed -= sequence.landed
        sequence.landed = 0
        if not sequence.waits:
            return
        for flight in self._flights.values():
            if sequence in flight.waiters:
                flight.waiters.remove(sequence)
                sequence.waits = False
                if not flight.wanted:
                    self._abandon(flight)

    def bring(self, sequence: Sequence, room: int, now: float) -> int | None:
        """Fetches what a sequence lacks, though no request waits for it and it is not to be computed. Returns
        the fetch's number; it ends by itself or by ``let_go``. None if nothing can be had, or if there is no
        room for it beside what requests ask for."""
        nodes = readable(sequence, self._cache)
        start, total = len(nodes), self._cache.pool.total
        most = min(self._room(nodes, room), total // _AHEAD_SHARE)
        if start == len(sequence.hashes) or sequence.hashes[start] in self._coming:
            return None
        for supply in self.supplies:
            found = min(supply.find(sequence, start), most)
            if found > 0 and len(self._cache.wanted) + found <= total:
                flight = self._order(sequence, supply, nodes, found, now, math.inf)
                flight.ahead = True
                return flight.fetch.id
        return None

    def let_go(self, fetch_id: int) -> None:
        """The caller of ``bring`` does not need this fetch any more. It goes on only if a sequence waits for
        it."""
        flight = self._flights.get(fetch_id)
        if flight is not None and flight.ahead:
            flight.ahead = False
            if not flight.wanted:
                self._abandon(flight)

    def _hurry(self, flight: Flight, now: float) -> None:
        """Somebody waits for it now: it may take no longer than computing what is left of it would."""
        left = flight.left
        patience = self.pace.patience_s(flight.fetch.source, left, left * self._block_size)
        flight.deadline = min(flight.deadline, now + patience)

    def _room(self, nodes: list[Node], room: int) -> int:
        """How many blocks a fetch that continues ``nodes`` may take. If the pool is too small for the prompts
        of all requests together, there is one fetch at a time: each displaces what others wait for."""
        total = self._cache.pool.total
        if len(self._cache.wanted) > total and self._flights:
            return 0
        flying = sum(flight.pieces for flight in self._flights.values())
        spare = self._cache.available_beside(node.block for node in nodes) - room
        return min(total // _SHARE - flying - self._landed, spare)

    def _start(self, sequence: Sequence, nodes: list[Node], room: int, now: float, fits: bool) -> bool:
        """Starts a fetch from the nearest supply that is worth it. False if one is, but there is no room yet
        for all that it has: the rest would be computed. A sequence that ``fits`` takes as many blocks when it
        is admitted, so there is room for its fetch as well."""
        start, share = len(nodes), self._cache.pool.total // _SHARE
        for supply in self.supplies:
            found = min(supply.find(sequence, start), share)
            tokens = found * self._block_size
            if found <= 0:
                continue
            patience = supply.patience_s(sequence)
            if patience is None and self.pace.worth(supply.source, found, tokens, now):
                patience = self.pace.patience_s(supply.source, found, tokens)
            if patience is not None:
                if not fits and found > self._room(nodes, room):
                    sequence.reach = start + found
                    return False
                self._join(self._order(sequence, supply, nodes, found, now, patience), sequence)
                return True
        return True

    def _order(
        self, sequence: Sequence, supply: Supply, nodes: list[Node], found: int, now: float, patience: float
    ) -> Flight:
        request, start = sequence.request, len(nodes)
        self._cache.pin([node.block for node in nodes])
        blocks = self._cache.allocate(found)
        assert blocks is not None
        stocks = supply.take(sequence, start, found)
        hashes = sequence.hashes[start : start + found]
        ids = self._token_ids(sequence, start, found)
        pieces = tuple(map(Piece._make, zip(hashes, ids, blocks, stocks, strict=True)))
        parent = nodes[-1].hash if nodes else request.root
        fetch = Fetch(next(self._ids), supply.source, request, request.root, parent, start, pieces)
        flight = Flight(fetch, supply, list(nodes), now, now + patience, supply.expected_s(sequence, found))
        self._flights[fetch.id] = flight
        self._coming.update(dict.fromkeys(hashes, flight))
        self.totals.fetches[supply.source] += 1
        self._orders.append(fetch)
        return flight

    def _token_ids(self, sequence: Sequence, start: int, found: int) -> list[bytes]:
        size, step = self._block_size, self._block_size * TOKEN_BYTES
        packed = sequence.token_ids[start * size : (start + found) * size].tobytes()
        return [packed[at : at + step] for at in range(0, len(packed), step)]

    @staticmethod
    def _join(flight: Flight, sequence: Sequence) -> None:
        flight.waiters.append(sequence)
        sequence.waits = sequence.looked = sequence.tried = True
        sequence.reach = flight.fetch.depth + flight.pieces

    def _forget(self, flight: Flight, until: int) -> None:
        """Nobody may join the fetch any more for pieces before ``until``."""
        coming = self._coming
        for piece in flight.fetch.pieces[flight.forgotten : until]:
            if coming.get(piece.hash) is flight:
                del coming[piece.hash]
        flight.forgotten = max(flight.forgotten, until)

    def _abandon(self, flight: Flight) -> None:
        """Its blocks stay pinned until the carrier has let go of them."""
        self._orders.append(Abandon(flight.fetch.id))
        self._dismiss(flight, again=False)

    def _dismiss(self, flight: Flight, again: bool) -> None:
        """Those who waited for it do so no more. ``again``: they may look for what comes after it."""
        flight.ahead = False
        missing = (flight.pieces - flight.settled) * self._block_size
        for sequence in flight.waiters:
            sequence.waits, sequence.looked = False, not again
            sequence.reach = sequence.reach if again else 0
            sequence.request.uncached += missing  # after all
        flight.waiters = []
        self._forget(flight, flight.pieces)

    # ---- computing the front of what is on its way ----------------------------------------------

    def race_at(self, sequence: Sequence, step_s: float, busy: bool) -> float:
        """When a waiting sequence should begin to compute the front of what is fetched for it."""
        flight = next((f for f in self._flights.values() if sequence in f.waiters), None)
        if flight is None or flight.racer:
            return math.inf
        return racing.begins(flight, self.pace, self._block_size, step_s, busy)

    def race(self, sequence: Sequence) -> None:
        """The sequence has been admitted and computes the front; the rest is brought from its end on."""
        flight = next(f for f in self._flights.values() if sequence in f.waiters)
        flight.waiters.remove(sequence)
        sequence.waits = False
        flight.racer, flight.deadline = sequence, math.inf  # siblings can only gain by it
        self._races[sequence] = flight
        self._orders.append(Turn(flight.fetch.id))

    def stretch(self, sequence: Sequence, now: float) -> int | None:
        """Tokens that it may compute in the next step; None if nothing is brought from the other end."""
        flight = self._races.get(sequence)
        return racing.stretch(flight, sequence, self.pace, self._block_size, now) if flight else None

    def catch_up(
        self, release: Callable[[list[int]], None], now: float
    ) -> Iterator[tuple[Sequence, Source, int]]:
        """Sequences that race go on with what has come. Yields who, from where, and how many tokens."""
        for sequence, flight in list(self._races.items()):
            if sequence.under_way:
                continue
            whole = flight.settle(self._cache)
            tokens = racing.adopt(sequence, flight.chain, self._cache, release, self._block_size)
            yield sequence, flight.fetch.source, tokens
            ended = flight.over is not None and not flight.back
            if ended or not whole or not sequence.sealable or flight.settled == flight.pieces:
                self.left(sequence, now)

    def left(self, sequence: Sequence, now: float) -> None:
        """Ends the sequence's race, if it is in one: the two ends have met, or it computes alone, or it has
        gone."""
        flight = self._races.pop(sequence, None)
        if flight is None:
            return
        flight.racer, source = None, flight.fetch.source
        self.totals.wasted[source] += flight.there - flight.used
        if flight.there and not flight.over:
            self._note_pace(flight, sequence.request)
        if flight.over is not None:
            self._end(flight, flight.over, now)
        elif flight.settled == flight.pieces or not flight.wanted:
            self._abandon(flight)
        else:
            self._hurry(flight, now)

    # ---- what carriers say ---------------------------------------------------------------------

    def arrived(self, arrival: Arrival, now: float) -> None:
        flight = self._flights[arrival.id]
        assert flight.front <= arrival.arrived <= flight.pieces
        assert flight.back <= arrival.back <= flight.pieces
        before, source = flight.there, flight.fetch.source
        flight.front, flight.back, flight.came_at = arrival.arrived, arrival.back, now
        collided = not flight.settle(self._cache)
        self._forget(flight, flight.settled)
        came = flight.there - before
        self.totals.arrived[source] += came
        if flight.waiters:
            self._deal_out(flight, came)
        elif not flight.wanted:
            self.totals.wasted[source] += came
        if not arrival.over:
            if collided and flight.wanted:
                self._abandon(flight)
        elif flight.racer:
            flight.over = arrival.failure  # ``catch_up`` sees what is of use still
        else:
            self._end(flight, arrival.failure, now)

    def _deal_out(self, flight: Flight, came: int) -> None:
        flight.waiters[0].landed += came
        self._landed += came
        for sequence in flight.waiters:
            if sequence.request.admitted is None:
                sequence.request.brought[flight.fetch.source] += came * self._block_size

    def _note_pace(self, flight: Flight, request: Request) -> None:
        """Learns from how long it took, and notes it for the router, which prices loads by it. Pulls are told
        to the router by the Puller."""
        seconds, source = flight.came_at - flight.began, flight.fetch.source
        self.pace.brought(source, flight.there, seconds)
        if source != Source.PEER and not request.started:
            before_s, size = request.loaded or (0.0, 0)
            size += flight.there * self.block_bytes
            request.loaded = Loaded(before_s + seconds, size)

    def _end(self, flight: Flight, failure: str, now: float) -> None:
        fetch = flight.fetch
        del self._flights[fetch.id]
        if failure:
            self.totals.failed[fetch.source] += flight.left
            if failure not in MISSES:
                self.pace.failed(fetch.source, now)
        elif flight.waiters and flight.over is None:
            self._note_pace(flight, flight.waiters[0].request)
        self._dismiss(flight, again=not failure)
        self._cache.release(flight.held)
        flight.supply.give_back(fetch)
