"""KV on its way in a modelled fleet: from a peer over its link, from a worker's own host memory.

Each link carries one transfer after another.
"""

from collections.abc import Callable
from typing import Any

from warmfleet_proto.transfer_pb2 import Pull

from warmfleet_router.replay.cache import Node
from warmfleet_router.replay.member import Member
from warmfleet_router.replay.worker import Job, Load

At = Callable[..., None]  # (when, action, *arguments)


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
        source.worker.cache.unpin(nodes)
        job.pulled = member.worker.arrive(job, blocks, blocks if complete else 0)
        self._stir(member)

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
