"""KV on its way in a modelled fleet: from a peer over its link, from a worker's own host memory.

Each link carries one transfer after another.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from warmfleet_proto.transfer_pb2 import Pulled

from warmfleet_router.moving.replication import Order
from warmfleet_router.replay.cache import Node
from warmfleet_router.replay.job import Flight, Job, Load
from warmfleet_router.replay.member import Member

SLICE_BYTES = 256 << 20  # of an order, between which a link carries what requests wait for

At = Callable[..., None]  # (when, action, *arguments)


@dataclass(slots=True)
class _Ahead:
    """An order that is being carried out."""

    order: Order
    source: Member
    target: Member
    flight: Flight
    nodes: list[Node]  # pinned at the source
    left: float  # bytes
    began: float
    over: Callable[[Order, Pulled], Any]


class Bringing:
    def __init__(self, members: list[Member], at: At, stir: Callable[[Member], Any]) -> None:
        self._members = members
        self._at = at
        self._stir = stir

    def pull(self, member: Member, job: Job, flight: Flight, now: float) -> None:
        """Pulls what the source holds of it. A pull that takes too long is given up."""
        assert job.pull is not None
        pull, profile, size = job.pull, member.worker.profile, member.worker.block_size
        source, have = self._members[int(pull.source[1:])], len(flight.nodes)
        there = source.worker.held(flight.keys) - have
        if there <= 0:
            self._at(now, self._pulled, source, [], member, job, flight, 0)
            return
        nodes = source.worker.cache.match(flight.keys)
        source.worker.cache.pin(nodes)  # leased
        queued_s = max(source.sending_until - now, 0.0)
        whole_s = profile.bring_s(there * size, profile.link_bytes_per_s)
        sending_s = min(whole_s, max(pull.within_s - queued_s - profile.link_latency, 0.0))
        complete = sending_s == whole_s
        source.sending_until = now + queued_s + sending_s
        source.given_blocks += there * complete
        job.pull_bytes = sending_s * profile.link_bytes_per_s
        job.pull_s = profile.link_latency + sending_s
        done_s = queued_s + job.pull_s if complete else pull.within_s
        self._at(now + done_s, self._pulled, source, nodes, member, job, flight, there * complete)

    def _pulled(
        self, source: Member, nodes: list[Node], member: Member, job: Job, flight: Flight, come: int
    ) -> None:
        source.worker.cache.unpin(nodes, used=False)
        member.worker.flights.land(flight, come, job)
        self._stir(member)

    def order(self, order: Order, now: float, over: Callable[[Order, Pulled], Any]) -> None:
        """What the router wants to be brought; ``over`` is told what came of it."""
        source, target = self._members[int(order.source.name[1:])], self._members[int(order.target.name[1:])]
        keys = memoryview(order.keys).cast("Q").tolist()
        keys = keys[: source.worker.held(keys)]
        if len(keys) <= target.worker.held(keys):
            over(order, Pulled(failure="gone"))
            return
        flight = target.worker.flights.ahead(keys, len(target.worker.running))
        if flight is None:
            over(order, Pulled(failure="full"))
            return
        nodes = source.worker.cache.match(flight.keys)
        source.worker.cache.pin(nodes)  # leased
        size = target.worker.block_size * target.worker.profile.kv_bytes_per_token
        ahead = _Ahead(order, source, target, flight, nodes, float(flight.blocks * size), now, over)
        self._carry(ahead, now)

    def _carry(self, of: _Ahead, now: float) -> None:
        """One slice more, as far as there is time for it."""
        profile, until = of.target.worker.profile, of.began + of.order.within_s
        begins = max(of.source.sending_until, now)
        carried = min(of.left, SLICE_BYTES, max(until - begins, 0.0) * profile.link_bytes_per_s)
        if not carried:
            self._at(max(until, now), self._given_up, of, max(until, now))
            return
        of.source.sending_until = begins + carried / profile.link_bytes_per_s
        of.left -= carried
        when = of.source.sending_until + (0.0 if of.left else profile.link_latency)
        self._at(when, self._carry if of.left else self._carried, of, when)

    def _given_up(self, of: _Ahead, now: float) -> None:
        of.source.worker.cache.unpin(of.nodes, used=False)
        of.target.worker.flights.land(of.flight, 0)
        of.over(of.order, Pulled(seconds=now - of.began, failure="given_up"))

    def _carried(self, of: _Ahead, now: float) -> None:
        of.source.worker.cache.unpin(of.nodes, used=False)
        worker = of.target.worker
        came = worker.flights.land(of.flight, of.flight.blocks)
        of.source.given_blocks += came
        self._stir(of.target)
        size = worker.block_size * worker.profile.kv_bytes_per_token
        brought = of.flight.blocks * size
        of.over(of.order, Pulled(tokens=came * worker.block_size, seconds=now - of.began, bytes=brought))

    def load(self, member: Member, load: Load, now: float) -> None:
        """Loads from host memory what the worker asked for."""
        profile, size = member.worker.profile, member.worker.block_size
        seconds = profile.bring_s(load.blocks * size, profile.host_bytes_per_s)
        member.loading_until = max(member.loading_until, now) + seconds
        load.job.load_s += seconds
        load.job.loaded += load.blocks
        self._at(member.loading_until, self._loaded, member, load)

    def _loaded(self, member: Member, load: Load) -> None:
        blocks = load.start + load.blocks
        member.worker.flights.arrive(load.job, blocks, blocks)
        self._stir(member)
