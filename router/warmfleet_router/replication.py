"""Which prefixes workers should bring though no request waits for them: copies of what is in demand, and what
a worker that is about to leave holds of it.

Off the path of any request: orders are made at ticks, the shell has workers carry them out. A copy counts in
placements once its presence events have come, like everything else that a worker holds; nobody takes it back
when demand falls: it is then what the worker evicts next.
"""

from collections.abc import Iterable, Iterator
from itertools import count
from typing import NamedTuple

from warmfleet_proto.limits import GRANT_TTL_S, KEY_BYTES
from warmfleet_proto.transfer_pb2 import Pulled

from warmfleet_router.fleet import Worker
from warmfleet_router.group import Group
from warmfleet_router.moves import Moves
from warmfleet_router.routing import Routing
from warmfleet_router.view import Counters
from warmfleet_router.wanted import NEAR_SHARE, Prefix

OVERHEAD_S = 5e-3  # of an order, whatever its size
SENDING = 0.05  # a second of a link delays others by this much: what it carries for requests goes beside it
MOST_FROM = 2  # orders at once that a worker gives blocks for; while it drains it gives them to
MOST_FROM_DRAINING = 4  # ... more
MOST_TO = 2  # and that one brings
REST_S = 5.0  # of a prefix that did not come
SAVE_S = 4.0  # the budget of so many seconds may be spent at once
LATE_S = 5.0  # without an answer for so long after its time an order is forgotten


class Order(NamedTuple):
    """``target`` is to bring blocks ``first`` to ``first + blocks`` of a prefix from ``source``."""

    id: int
    group: Group
    source: Worker
    target: Worker
    prefix: Prefix
    root: bytes
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
        self._on = routing.replicate
        self._rate = routing.replicate_bytes_per_s
        self._evacuate_bytes = routing.evacuate_bytes
        self._counters = counters
        self._moves = moves
        self._ids = count(1)
        self._under_way: dict[int, Order] = {}
        self._orders: list[Order] = []
        self._resting: dict[int, float] = {}  # until when, by mark
        self._spent: dict[Group, float] = {}  # bytes above what time has allowed
        self._leaving: dict[Worker, _Leaving] = {}
        self._at = 0.0

    def take_orders(self) -> list[Order]:
        """Each is to be answered by ``brought``."""
        orders, self._orders = self._orders, []
        return orders

    # ---- time

    def tick(self, groups: Iterable[Group], now: float) -> None:
        if not self._on:
            return
        self._forget(now)
        for group in groups:
            givers = [worker for worker in group.workers.values() if _gives(worker)]
            self._save(group, len(givers), now)
            due = group.wanted.take_due()
            if len(givers) > 1:
                self._replicate(group, due, now)
            self._evacuate(group, givers, now)
        self._at = now

    def brought(self, order_id: int, pulled: Pulled | None, now: float) -> None:
        """What came of an order; None where the target did not take it."""
        order = self._under_way.pop(order_id, None)
        if order is None:
            return
        source, target = order.source, order.target
        if pulled is None or pulled.failure:
            self._counters.bring_failures += 1
            self._resting[order.prefix.mark] = now + REST_S
        if pulled is None:
            return
        self._moves.brought(source.name, target.name, pulled, order.leaving)
        if pulled.bytes and not pulled.failure:
            order.group.links.observe(source.name, target.name, float(pulled.bytes), pulled.seconds)

    def _forget(self, now: float) -> None:
        """What has taken its time."""
        late = [o.id for o in self._under_way.values() if now > o.made_at + o.within_s + LATE_S]
        for order_id in late:
            self.brought(order_id, None, now)
        self._resting = {mark: until for mark, until in self._resting.items() if until > now}
        self._leaving = {w: each for w, each in self._leaving.items() if w.draining and w.epoch == each.epoch}

    def _save(self, group: Group, givers: int, now: float) -> None:
        allowed = self._rate * givers * max(now - self._at, 0.0)
        self._spent[group] = max(self._spent.get(group, 0.0) - allowed, -SAVE_S * self._rate * givers)

    # ---- copies of what is in demand

    def _replicate(self, group: Group, due: Iterable[Prefix], now: float) -> None:
        for prefix in due:
            if self._spent[group] >= 0.0:
                return
            order = self._copy(group, prefix, now)
            if order is not None:
                self._spent[group] += order.bytes
                self._counters.replications += 1
                self._give(order)

    def _copy(self, group: Group, prefix: Prefix, now: float) -> Order | None:
        """Where another copy saves more than it costs."""
        seen = self._seen(group, prefix)
        if seen is None:
            return None
        enough = seen.blocks * (1.0 - NEAR_SHARE)
        holders = sum(blocks >= enough for blocks in seen.held.values())
        source = min(
            (w for w in seen.holders if w.connected and self._sends(w) < MOST_FROM),
            key=lambda w: (self._sends(w), w.given_s),
            default=None,
        )
        if source is None or source.draining:
            return None
        others = [w for w in seen.others if seen.held.get(w.slot, 0) < enough]
        target = self._cheapest(group, source, others, seen, prefix)
        if target is None:
            return None
        lacks = seen.blocks - seen.held.get(target.slot, 0)
        saved_s = (
            prefix.requests(now)
            * group.wanted.saves(holders)
            * target.rates.queue_s(lacks * group.block_size)
        )
        if saved_s <= _cost_s(group, source, target, lacks):
            return None
        return self._order(group, prefix, source, target, seen, now, GRANT_TTL_S, leaving=False)

    # ---- what a worker that drains holds

    def _evacuate(self, group: Group, givers: Iterable[Worker], now: float) -> None:
        for worker in givers:
            if not worker.draining or not worker.connected:
                continue
            leaving = self._leaving.get(worker)
            if leaving is None:
                prefixes = iter(group.wanted.hottest(now))
                leaving = self._leaving[worker] = _Leaving(worker.epoch, prefixes, self._evacuate_bytes)
            while self._sends(worker) < MOST_FROM_DRAINING and leaving.bytes_left > 0:
                prefix = next(leaving.prefixes, None)
                if prefix is None:
                    break
                order = self._save_from(group, worker, prefix, now)
                if order is not None:
                    leaving.bytes_left -= order.bytes
                    self._counters.evacuations += 1
                    self._give(order)

    def _save_from(self, group: Group, worker: Worker, prefix: Prefix, now: float) -> Order | None:
        """What nobody who stays holds of a prefix."""
        seen = self._seen(group, prefix)
        if seen is None or worker not in seen.holders or worker.leaves_s <= 0:
            return None
        if any(seen.held.get(w.slot, 0) >= seen.blocks for w in group.pool.workers):
            return None
        target = self._cheapest(group, worker, seen.others, seen, prefix)
        if target is None:
            return None
        return self._order(group, prefix, worker, target, seen, now, worker.leaves_s, leaving=True)

    # ---- both

    def _seen(self, group: Group, prefix: Prefix) -> "_Seen | None":
        """Who holds how much of it; None where nobody does, or where it rests or is on its way."""
        if prefix.mark in self._resting or any(o.prefix is prefix for o in self._under_way.values()):
            return None
        held = {slot: blocks for slot, blocks, *_ in group.index.lookup(prefix.keys, group.loads)}
        most = max((blocks for slot, blocks in held.items() if _gives(group.workers[slot])), default=0)
        if not most:
            return None
        holders = [group.workers[slot] for slot, blocks in held.items() if blocks == most]
        others = [group.workers[slot] for slot, blocks in held.items() if blocks < most]
        home = group.pool.ring.home(prefix.mark, group.pool.members, float("inf"))
        if home is not None and home.slot not in held:
            others.append(home)
        others = [w for w in others if w in group.pool.members and _gives(w) and self._brings(w) < MOST_TO]
        return _Seen(most, held, [w for w in holders if _gives(w)], others, home)

    def _cheapest(
        self, group: Group, source: Worker, others: Iterable[Worker], seen: "_Seen", prefix: Prefix
    ) -> Worker | None:
        """The ring home among those where it costs little more than the least, else who was given least."""
        costs = {w: _cost_s(group, source, w, seen.blocks - seen.held.get(w.slot, 0)) for w in others}
        if not costs:
            return None
        limit = (1.0 + NEAR_SHARE) * min(costs.values()) + 1e-3
        near = [w for w, cost in costs.items() if cost <= limit]
        return seen.home if seen.home in near else min(near, key=lambda w: w.given_s)

    def _order(
        self,
        group: Group,
        prefix: Prefix,
        source: Worker,
        target: Worker,
        seen: "_Seen",
        now: float,
        within_s: float,
        *,
        leaving: bool,
    ) -> Order:
        first = seen.held.get(target.slot, 0)
        keys = prefix.keys[: seen.blocks * KEY_BYTES]
        blocks = seen.blocks - first
        return Order(
            next(self._ids),
            group,
            source,
            target,
            prefix,
            prefix.root,
            keys,
            first,
            blocks,
            now,
            within_s,
            leaving,
        )

    def _give(self, order: Order) -> None:
        self._under_way[order.id] = order
        self._orders.append(order)

    def _sends(self, worker: Worker) -> int:
        return sum(order.source is worker for order in self._under_way.values())

    def _brings(self, worker: Worker) -> int:
        return sum(order.target is worker for order in self._under_way.values())


class _Leaving:
    """A worker that drains, with what is still to be looked at, the hottest first."""

    def __init__(self, epoch: int, prefixes: Iterator[Prefix], bytes_left: float) -> None:
        self.epoch = epoch
        self.prefixes = prefixes
        self.bytes_left = bytes_left


class _Seen(NamedTuple):
    blocks: int  # of the prefix, the most that anyone holds
    held: dict[int, int]  # by slot
    holders: list[Worker]  # of so many, who could give them
    others: list[Worker]  # who could bring them
    home: Worker | None


def _gives(worker: Worker) -> bool:
    return worker.identity is not None and worker.identity.gives_blocks and worker.connected


def _cost_s(group: Group, source: Worker, target: Worker, blocks: int) -> float:
    """Seconds that bringing so many blocks costs others: the link, and what is displaced."""
    tokens = blocks * group.block_size
    sending_s = sum(group.links.seconds(source, target, tokens * group.token_bytes))
    displaced = max(tokens - target.report.free_blocks * group.block_size, 0)
    return OVERHEAD_S + SENDING * sending_s + group.pressure.reuse * target.rates.queue_s(displaced)
