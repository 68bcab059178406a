"""KV on its way in a modelled fleet: from a peer over its link, from a worker's own host memory.

Each link carries one transfer after another.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from warmfleet_proto.transfer_pb2 import Pull, Pulled

from warmfleet_router.moving.replication import Order
from warmfleet_router.replay.cache import Node
from warmfleet_router.replay.job import Job, Load
from warmfleet_router.replay.member import Member

SLICE_BYTES = 256 << 20  # of an order, between which a link carries what requests wait for

At = Callable[..., None]  # (when, action, *arguments)


@dataclass(slots=True)
class _Ahead:
    """An order that is being carried out."""

    order: Order
    source: Member
    target: Member
    keys: list[int]  # of what the source held when it began
    nodes: list[Node]  # pinned at the source
    have: int  # blocks at the target when it began
    left: float  # bytes
    began: float
    over: Callable[[Order, Pulled], Any]


class Bringing:
    def __init__(self, members: list[Member], at: At, stir: Callable[[Member], Any]) -> None:
        self._members = members
        self._at = at
        self._stir = stir

    def pull(self, member: Member, job: Job, pull: Pull, now: float) -> None:
        """What the placement says; one that takes too long is given up."""
        source, size, profile = (
            self._members[int(pull.source[1:])],
            member.worker.block_size,
            member.worker.profile,
        )
        wanted = job.keys[: (pull.from_tokens + pull.tokens) // size]
        have, there = member.worker.held(wanted), source.worker.held(wanted)
        if there <= have:
            return
        nodes = source.worker.cache.match(wanted)
        source.worker.cache.pin(nodes)  # leased
        member.worker.expect(job, there)
        queued_s = max(source.sending_until - now, 0.0)
        whole_s = profile.bring_s((there - have) * size, profile.link_bytes_per_s)
        sending_s = min(whole_s, max(pull.within_s - queued_s - profile.link_latency, 0.0))
        complete = sending_s == whole_s
        source.sending_until = now + queued_s + sending_s
        source.given_blocks += (there - have) * complete
        job.pull_bytes = sending_s * profile.link_bytes_per_s
        job.pull_s = profile.link_latency + sending_s
        done_s = queued_s + job.pull_s if complete else pull.within_s
        self._at(now + done_s, self._pulled, source, nodes, member, job, there, complete)

    def _pulled(
        self, source: Member, nodes: list[Node], member: Member, job: Job, blocks: int, complete: bool
    ) -> None:
        source.worker.cache.unpin(nodes, used=False)
        job.pulled = member.worker.arrive(job, blocks, blocks if complete else 0)
        self._stir(member)

    def order(self, order: Order, now: float, over: Callable[[Order, Pulled], Any]) -> None:
        """What the router wants to be brought; ``over`` is told what came of it."""
        source, target = self._members[int(order.source.name[1:])], self._members[int(order.target.name[1:])]
        keys = memoryview(order.keys).cast("Q").tolist()
        have, there = target.worker.held(keys), source.worker.held(keys)
        if there <= have:
            over(order, Pulled(failure="gone"))
            return
        nodes = source.worker.cache.match(keys)
        source.worker.cache.pin(nodes)  # leased
        size = target.worker.block_size * target.worker.profile.kv_bytes_per_token
        ahead = _Ahead(
            order, source, target, keys[:there], nodes, have, float((there - have) * size), now, over
        )
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
        of.over(of.order, Pulled(seconds=now - of.began, failure="given_up"))

    def _carried(self, of: _Ahead, now: float) -> None:
        of.source.worker.cache.unpin(of.nodes, used=False)
        worker = of.target.worker
        came = worker.cache.take_in(of.keys)
        of.source.given_blocks += came
        self._stir(of.target)
        size = worker.block_size * worker.profile.kv_bytes_per_token
        brought = (len(of.keys) - of.have) * size
        of.over(of.order, Pulled(tokens=came * worker.block_size, seconds=now - of.began, bytes=brought))

    def load(self, member: Member, load: Load, now: float) -> None:
        """From host memory, as the worker asked."""
        profile, size = member.worker.profile, member.worker.block_size
        seconds = profile.bring_s(load.blocks * size, profile.host_bytes_per_s)
        member.loading_until = max(member.loading_until, now) + seconds
        load.job.load_s += seconds
        load.job.loaded += load.blocks
        self._at(member.loading_until, self._loaded, member, load)

    def _loaded(self, member: Member, load: Load) -> None:
        blocks = load.start + load.blocks
        member.worker.arrive(load.job, blocks, blocks)
        self._stir(member)
