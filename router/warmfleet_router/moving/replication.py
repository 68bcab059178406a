"""Which prefixes workers should bring before a request asks for them: more copies of those in demand, and
those that only a worker about to leave holds.

No request waits for this: orders are made at ticks, and the shell has workers carry them out. Placements
count a copy once its presence events have come, as anything that a worker holds. Nobody takes a copy back
when demand falls: the worker evicts it in its turn.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from itertools import count
from math import inf
from typing import NamedTuple

from warmfleet_proto.limits import GRANT_TTL_S, KEY_BYTES
from warmfleet_proto.transfer_pb2 import Pulled

from warmfleet_router.fleet.group import Group
from warmfleet_router.fleet.worker import Worker
from warmfleet_router.moving.moves import Moves
from warmfleet_router.prices.wanted import NEAR_SHARE, Prefix
from warmfleet_router.routing import Routing
from warmfleet_router.view import Counters

LOOKS = 4  # prefixes that are looked at in a tick: each takes as long as a placement
NEAR_S = 1e-3
OVERHEAD_S = 5e-3  # that an order costs, whatever its size
SENDING = 0.05  # a second of sending delays others by so much: what requests pull is sent beside it
MOST_FROM = 2  # orders under way for which a worker gives blocks ...
MOST_FROM_DRAINING = 4  # ... or gives them while it drains ...
MOST_TO = 2  # ... or brings them
REST_S = 5.0  # a prefix that did not come is left alone for so long
SAVE_S = 4.0  # unspent bytes are saved up for so many seconds
LATE_S = 5.0  # an order without an answer is forgotten so long after its time


class Order(NamedTuple):
    """``target`` is to bring blocks ``first`` to ``first + blocks`` of a prefix from ``source``."""

    id: int
    group: Group
    source: Worker
    target: Worker
    prefix: Prefix
    keys: bytes  # packed, of the prefix up to the last block
    first: int
    blocks: int
    made_at: float
    within_s: float
    leaving: bool  # the source is about to go

    @property
    def bytes(self) -> float:
        return self.blocks * self.group.block_size * self.group.token_bytes


class Replication:
    def __init__(self, routing: Routing, counters: Counters, moves: Moves) -> None:
        self._on = routing.replicate and routing.policy == "cheapest"
        self._rate = routing.replicate_bytes_per_s
        self._evacuate_bytes = routing.evacuate_bytes
        self._counters = counters
        self._moves = moves
        self._ids = count(1)
        self._under_way: dict[int, Order] = {}
        self._coming: set[Prefix] = set()  # prefixes of orders under way ...
        self._sends: Counter[Worker] = Counter()  # ... and how many of these orders each worker sends for ...
        self._brings: Counter[Worker] = Counter()  # ... and brings for
        self._orders: list[Order] = []
        self._resting: dict[int, float] = {}  # prefixes that did not come, by mark: left alone until then
        self._spent: dict[Group, float] = {}  # bytes ordered, minus those that the rate has allowed since
        self._leaving: dict[Worker, _Leaving] = {}
        self._at = 0.0

    def take_orders(self) -> list[Order]:
        """Each is to be answered by ``brought``."""
        orders, self._orders = self._orders, []
        return orders

    def brought(self, order_id: int, pulled: Pulled | None, now: float) -> None:
        """What came of an order; None where the target did not take it."""
        order = self._under_way.pop(order_id, None)
        if order is None:
            return
        source, target = order.source, order.target
        self._coming.discard(order.prefix)
        _less(self._sends, source)
        _less(self._brings, target)
        if pulled is None or pulled.failure:
            self._counters.bring_failures += 1
            self._resting[order.prefix.mark] = now + REST_S
        if pulled is not None:
            self._moves.brought(source.name, target.name, pulled, order.leaving)
            came, seconds = float(pulled.bytes), pulled.seconds
            order.group.links.told(source.name, target.name, order.bytes, came, seconds, pulled.failure, now)

    def tick(self, groups: Collection[Group], now: float) -> None:
        """Makes orders. It takes little time: a few prefixes are looked at, the others next time."""
        if not self._on:
            return
        self._forget(now)
        self._spent = {group: self._spent.get(group, 0.0) for group in groups}
        for group in groups:
            givers = [worker for worker in group.workers.values() if worker.gives]
            group.copies_ahead = len(givers) > 1
            if group.copies_ahead:
                self._replicate(group, len(givers), now)
                for worker in givers:
                    if worker.draining and worker.leaves_s > 0.0:
                        self._evacuate(group, worker, now)
        self._at = now

    def _forget(self, now: float) -> None:
        """Forgets orders without an answer, rests that are over, and workers that have gone or stay after
        all."""
        late = [o.id for o in self._under_way.values() if now > o.made_at + o.within_s + LATE_S]
        for order_id in late:
            self.brought(order_id, None, now)
        self._resting = {mark: until for mark, until in self._resting.items() if until > now}
        here = {w: each for w, each in self._leaving.items() if w.draining and w.gives}
        self._leaving = {w: each for w, each in here.items() if w.epoch == each.epoch}

    # ---- copies of what is in demand

    def _replicate(self, group: Group, givers: int, now: float) -> None:
        allowed = self._rate * givers
        spent = self._spent[group] - allowed * max(now - self._at, 0.0)
        self._spent[group] = max(spent, -SAVE_S * allowed)
        for prefix in group.wanted.take_due(LOOKS):
            order = self._copy(group, prefix, now) if self._spent[group] < 0.0 else None
            if order is not None:
                self._spent[group] += order.bytes
                self._counters.replications += 1
                self._give(order)

    def _copy(self, group: Group, prefix: Prefix, now: float) -> Order | None:
        """An order for one more copy of a prefix, if that saves more than it costs."""
        seen = self._seen(group, prefix)
        sources = [w for w in seen.holders if not w.draining and self._sends[w] < MOST_FROM]
        if not sources:
            return None
        source = min(sources, key=lambda w: (self._sends[w], w.given_s))
        enough = seen.blocks * (1.0 - NEAR_SHARE)
        target = self._cheapest(
            group, source, seen, now, [w for w in seen.others if seen.held_by(w) < enough]
        )
        if target is None:
            return None
        tokens = (seen.blocks - seen.held_by(target)) * group.block_size
        saves = group.wanted.saves(sum(blocks >= enough for blocks in seen.held.values()))
        saved_s = prefix.requests(now) * saves * target.rates.queue_s(tokens)
        if _sending_s(group, source, target, tokens, now) > GRANT_TTL_S or saved_s <= _cost_s(
            group, source, target, tokens, now
        ):
            return None
        return self._order(group, prefix, source, target, seen, now, GRANT_TTL_S)

    # ---- what a worker that drains holds

    def _evacuate(self, group: Group, worker: Worker, now: float) -> None:
        leaving = self._leaving.get(worker)
        if leaving is None:
            hottest = iter(group.wanted.hottest(now))
            leaving = self._leaving[worker] = _Leaving(worker.epoch, hottest, self._evacuate_bytes)
        for _ in range(LOOKS):
            free = any(w.gives and self._brings[w] < MOST_TO for w in group.pool.workers)
            if not free or self._sends[worker] >= MOST_FROM_DRAINING or leaving.bytes_left <= 0:
                return
            prefix = next(leaving.prefixes, None)
            order = self._rescue(group, worker, prefix, now) if prefix else None
            if order is not None:
                leaving.bytes_left -= order.bytes
                self._counters.evacuations += 1
                self._give(order)

    def _rescue(self, group: Group, worker: Worker, prefix: Prefix, now: float) -> Order | None:
        """An order for what ``worker``, which drains, holds of a prefix, if nobody who stays holds as
        much."""
        seen = self._seen(group, prefix)
        stay = any(not w.draining for w in seen.holders)
        target = self._cheapest(group, worker, seen, now, seen.others)
        if worker not in seen.holders or stay or target is None:
            return None
        return self._order(group, prefix, worker, target, seen, now, min(worker.leaves_s, GRANT_TTL_S))

    # ---- both

    def _seen(self, group: Group, prefix: Prefix) -> "_Seen":
        """Who holds how much of a prefix. Empty if it is left alone now, or on its way already."""
        if prefix.mark in self._resting or prefix in self._coming:
            return _Seen(0, {}, [], [], None)
        held, _ = group.index.leading(prefix.keys, group.loads)
        home = group.pool.ring.home(prefix.mark, group.pool.members, inf)
        if home is not None:
            held.setdefault(home.slot, 0)
        givers = {slot: group.workers[slot] for slot in held if group.workers[slot].gives}
        most = max((held[slot] for slot in givers), default=0)
        holders = [w for slot, w in givers.items() if most and held[slot] == most]
        others = [w for slot, w in givers.items() if held[slot] < most]
        others = [w for w in others if w in group.pool.members and self._brings[w] < MOST_TO]
        return _Seen(most, held, holders, others, home)

    def _cheapest(
        self, group: Group, source: Worker, seen: "_Seen", now: float, others: Iterable[Worker]
    ) -> Worker | None:
        """The target of a copy: of the workers where it costs little more than at the cheapest, the prefix's
        ring home, or else the one that was given least work lately."""
        lack = {w: (seen.blocks - seen.held_by(w)) * group.block_size for w in others}
        costs = {w: _cost_s(group, source, w, tokens, now) for w, tokens in lack.items()}
        limit = (1.0 + NEAR_SHARE) * min(costs.values(), default=0.0) + NEAR_S
        near = [w for w, cost in costs.items() if cost <= limit]
        return seen.home if seen.home in near else min(near, key=lambda w: w.given_s, default=None)

    def _order(
        self,
        group: Group,
        prefix: Prefix,
        source: Worker,
        target: Worker,
        seen: "_Seen",
        now: float,
        within_s: float,
    ) -> Order:
        keys, first = prefix.keys[: seen.blocks * KEY_BYTES], seen.held_by(target)
        number, blocks = next(self._ids), seen.blocks - first
        return Order(
            number, group, source, target, prefix, keys, first, blocks, now, within_s, source.draining
        )

    def _give(self, order: Order) -> None:
        self._under_way[order.id] = order
        self._coming.add(order.prefix)
        self._sends[order.source] += 1
        self._brings[order.target] += 1
        self._orders.append(order)


class _Leaving:
    """What is still to be saved from a worker that drains: its prefixes, the hottest first."""

    def __init__(self, epoch: int, prefixes: Iterator[Prefix], bytes_left: float) -> None:
        self.epoch = epoch
        self.prefixes = prefixes
        self.bytes_left = bytes_left


class _Seen(NamedTuple):
    blocks: int  # the most leading blocks of the prefix that anyone holds
    held: dict[int, int]  # leading blocks that each worker holds, by slot
    holders: list[Worker]  # workers that hold ``blocks`` and could give them
    others: list[Worker]  # workers that could bring what they lack
    home: Worker | None  # the prefix's home on the ring

    def held_by(self, worker: Worker) -> int:
        return self.held.get(worker.slot, 0)


def _less(counts: Counter[Worker], worker: Worker) -> None:
    counts[worker] -= 1
    if not counts[worker]:
        del counts[worker]


def _sending_s(group: Group, source: Worker, target: Worker, tokens: int, now: float) -> float:
    return sum(group.links.seconds(source.name, target.name, tokens * group.token_bytes, now))


def _cost_s(group: Group, source: Worker, target: Worker, tokens: int, now: float) -> float:
    """Seconds that bringing so much costs others: the link, and what is displaced."""
    sending_s = _sending_s(group, source, target, tokens, now)
    displaced = max(tokens - target.report.free_blocks * group.block_size, 0)
    return OVERHEAD_S + SENDING * sending_s + group.pressure.reuse * target.rates.queue_s(displaced)
