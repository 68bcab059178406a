"""A whole fleet in virtual time: arrivals, the router's placement, workers' steps, events on their way.

The router is the real one (RouterCore, its index, cursors, prices and books); only the workers and
the network are modelled. Same inputs and seed, same outcome, to the byte.
"""

import heapq
from collections.abc import Callable, Iterable, Mapping
from itertools import count
from random import Random
from typing import Any, NamedTuple

from warmfleet_proto import router_pb2 as rpb
from warmfleet_proto import worker_pb2 as wpb
from warmfleet_proto.limits import HEARTBEAT_S
from warmfleet_proto.transfer_pb2 import Pull

from warmfleet_router.core import RouterCore
from warmfleet_router.replay.announcer import Announcer
from warmfleet_router.replay.cache import Node
from warmfleet_router.replay.profile import Profile
from warmfleet_router.replay.trace import Request, Trace
from warmfleet_router.replay.worker import Job, Step, Worker
from warmfleet_router.routing import Routing

MODEL = "replayed"
GATEWAY = "replay"
START_S = 30.0  # after the workers have joined: slow start is over when traffic begins
TICK_S = 0.1
MAX_CONTEXT = 1 << 24


class Network(NamedTuple):
    """Of presence events on their way to the router. What is lost is noticed by the next message."""

    delay_s: float = 0.0
    loss: float = 0.0


IDEAL = Network()


class Outcome(NamedTuple):
    """One request as its client saw it. Seconds; tokens."""

    arrival_s: float
    ttft_s: float
    e2e_s: float
    prompt_tokens: int
    cached_tokens: int
    expected_tokens: int
    available_tokens: int
    predicted_s: float
    itl_s: float  # mean
    slow: bool  # more than 1 % of its tokens came late
    worker: int


class Member:
    """One worker with what surrounds it."""

    def __init__(self, index: int, worker: Worker) -> None:
        self.index = index
        self.address = f"replay:{index}"
        self.worker = worker
        self.announcer = Announcer(worker, epoch=index + 1)
        self.step: Step | None = None
        self.began_at = 0.0
        self.version = 0  # of the step's end in the queue; older ones are void
        self.sending_until = 0.0  # what its peers pull
        self.given_blocks = 0


class Fleet:
    def __init__(
        self,
        routing: Routing,
        profile: Profile,
        block_size: int,
        capacities: Iterable[int],
        *,
        network: Network = IDEAL,
        seed: int = 0,
        slowness: Iterable[float] = (),
        core: RouterCore | None = None,
        silent: Mapping[int, int] | None = None,
    ) -> None:
        """``silent`` workers announce nothing, and tell so many blocks; 0: they do not tell."""
        self.core = core or RouterCore(routing, seed)
        self.outcomes: list[Outcome] = []
        self.now = 0.0
        self._silent = silent or {}
        self._network = network
        self._random = Random(seed)  # noqa: S311 - which messages are lost
        self._queue: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = count()
        self._placed: dict[int, tuple[Request, rpb.Placement]] = {}
        self._pending = 0
        slow = list(slowness)
        self.members = [
            Member(i, Worker(profile, block_size, blocks, slow[i] if slow else 1.0))
            for i, blocks in enumerate(capacities)
        ]
        for member in self.members:
            self._join(member, block_size)

    def run(self, trace: Trace, speed: float = 1.0, progress: Callable[[int], None] | None = None) -> None:
        """Plays the trace ``speed`` times faster than recorded, until every request has ended."""
        self.now = START_S
        self._at(START_S, self._tick)
        for member in self.members:
            self._at(START_S, self._beat, member)
        arrivals = iter(enumerate(trace.requests))
        self._pending = 1
        self._next_arrival(arrivals, speed, progress)
        while self._pending:
            self._next()

    def rest(self, seconds: float, network: Network) -> None:
        """Time without requests, over ``network``: what was lost is noticed and asked for again."""
        self._network = network
        until = self.now + seconds
        while self._queue[0][0] <= until:
            self._next()

    def _next(self) -> None:
        self.now, _, action, arguments = heapq.heappop(self._queue)
        action(*arguments)

    def _at(self, when: float, action: Callable[..., None], *arguments: Any) -> None:
        heapq.heappush(self._queue, (when, next(self._order), action, arguments))

    def _join(self, member: Member, block_size: int) -> None:
        roster = self.core.roster
        roster.add(member.address)
        roster.joined(
            member.address,
            wpb.StatusResponse(
                worker=f"w{member.index}",
                epoch=member.announcer.epoch,
                model=MODEL,
                model_fingerprint=b"replay",
                block_size=block_size,
                total_blocks=self._silent.get(member.index, member.worker.cache.total),
                silent=member.index in self._silent,
                max_context=MAX_CONTEXT,
                max_running=member.worker.profile.max_running,
                engine="replay",
                block_bytes=block_size * member.worker.profile.kv_bytes_per_token,
                gives_blocks=member.worker.profile.link_bytes_per_s > 0,
            ),
            0.0,
        )
        for message in member.announcer.repeat(0, 0, 0.0):
            self._hear(member, message)

    # ---- a request

    def _next_arrival(self, arrivals: Any, speed: float, progress: Callable[[int], None] | None) -> None:
        following = next(arrivals, None)
        if following is None:
            self._pending -= 1
            return
        number, request = following
        if progress and number % 256 == 0:
            progress(number)
        self._at(START_S + request.arrival_s / speed, self._arrive, request, arrivals, speed, progress)

    def _arrive(self, request: Request, arrivals: Any, speed: float, progress: Any) -> None:
        self._pending += 1
        placement = self.core.route(
            rpb.RouteRequest(
                gateway_id=GATEWAY,
                model=MODEL,
                keys=request.keys.tobytes(),
                prompt_tokens=request.prompt_tokens,
                max_tokens=request.completion_tokens,
            ),
            self.now,
        )
        member = self.members[int(placement.worker[1:])]
        job = Job(placement.booking, request.keys, request.prompt_tokens, request.completion_tokens, self.now)
        self._placed[job.booking] = request, placement
        if placement.action == rpb.Placement.PULL:
            self._pull(member, job, placement.pull)
        member.worker.submit(job)
        member.announcer.accepted(job.booking)
        self._stir(member)
        self._next_arrival(arrivals, speed, progress)

    def _pull(self, member: Member, job: Job, pull: Pull) -> None:
        """The source's link carries one pull after another; one that takes too long is given up."""
        source, size = self.members[int(pull.source[1:])], member.worker.block_size
        wanted = (pull.from_tokens + pull.tokens) // size
        nodes = source.worker.cache.match(job.keys[:wanted])
        have = len(member.worker.cache.match(job.keys[:wanted]))
        if len(nodes) <= have:
            return
        member.worker.expect(job, len(nodes))
        source.worker.cache.pin(nodes)  # leased
        profile = member.worker.profile
        whole_s = profile.bring_s((len(nodes) - have) * size, profile.link_bytes_per_s)
        starts_s = max(source.sending_until - self.now, 0.0) + profile.link_latency
        sending_s = min(whole_s, max(pull.within_s - starts_s, 0.0))
        source.sending_until = self.now + starts_s - profile.link_latency + sending_s
        job.pull_bytes = sending_s * profile.link_bytes_per_s
        job.pull_s = profile.link_latency + sending_s
        complete = sending_s == whole_s
        source.given_blocks += (len(nodes) - have) * complete
        done_s = starts_s + sending_s if complete else pull.within_s
        self._at(self.now + done_s, self._pulled, source, nodes, member, job, complete)

    def _pulled(self, source: Member, nodes: list[Node], member: Member, job: Job, complete: bool) -> None:
        source.worker.cache.unpin(nodes)
        member.worker.arrive(job, complete)
        self._stir(member)

    def _started(self, job: Job) -> None:
        assert job.admitted_at is not None
        size = self.members[0].worker.block_size
        self.core.progress(
            rpb.ProgressRequest(
                booking=job.booking,
                cached_tokens=job.cached_tokens,
                queue_s=job.admitted_at - job.submitted_at,
                prefill_s=self.now - job.admitted_at,
                ttft_s=self.now - job.submitted_at,
                pulled_tokens=job.pulled * size,
                pulled_bytes=int(job.pull_bytes),
                pull_s=job.pull_s,
            ),
            self.now,
        )

    def _ended(self, member: Member, job: Job) -> None:
        assert job.started_at is not None
        request, placement = self._placed.pop(job.booking)
        member.announcer.ended(job.booking)
        self.core.finish(
            rpb.FinishRequest(
                booking=job.booking,
                outcome=rpb.FinishRequest.OK,
                completion_tokens=job.completion_tokens,
                cached_tokens=job.cached_tokens,
                e2e_s=self.now - job.submitted_at,
            ),
            self.now,
        )
        self._pending -= 1
        first = ("wait", "bring", "prefill")
        self.outcomes.append(
            Outcome(
                job.submitted_at - START_S,
                job.started_at - job.submitted_at,
                self.now - job.submitted_at,
                request.prompt_tokens,
                job.cached_tokens,
                placement.expected_tokens,
                placement.available_tokens,
                sum(term.seconds for term in placement.terms if term.name in first),
                (self.now - job.started_at) / max(job.completion_tokens - 1, 1),
                job.slow_steps > 0.01 * job.steps,
                member.index,
            )
        )

    # ---- a worker

    def _stir(self, member: Member) -> None:
        """Something was submitted: start a step, or cut a run of steps short."""
        if member.step is None:
            self._begin(member)
        elif member.step.repeats > 1:
            member.step = member.worker.interrupt(member.step, self.now - member.began_at)
            self._end_later(member)

    def _begin(self, member: Member) -> None:
        member.step = member.worker.schedule(self.now)
        member.began_at = self.now
        if member.step is not None:
            self._end_later(member)

    def _end_later(self, member: Member) -> None:
        assert member.step is not None
        member.version += 1
        self._at(member.began_at + member.step.seconds, self._end, member, member.version)

    def _end(self, member: Member, version: int) -> None:
        if version != member.version or member.step is None:
            return
        done = member.worker.commit(member.step, self.now)
        for job in done.started:
            self._started(job)
        for job in done.ended:
            self._ended(member, job)
        self._begin(member)
        cache = member.worker.cache
        if done.started or done.ended or cache.stored or cache.removed:
            self._tell(member)

    # ---- what the router hears

    def _beat(self, member: Member) -> None:
        due = member.announcer.told_at + HEARTBEAT_S
        if due <= self.now:
            self._tell(member)
            due = self.now + HEARTBEAT_S
        self._at(due, self._beat, member)

    def _tick(self) -> None:
        self.core.heartbeat(rpb.HeartbeatRequest(gateway_id=GATEWAY), self.now)
        self.core.tick(self.now)
        self._at(self.now + TICK_S, self._tick)

    def _tell(self, member: Member) -> None:
        message = member.announcer.message(self.now)
        if self._network.loss and self._random.random() < self._network.loss:
            return
        self._send(member, message)

    def _send(self, member: Member, message: wpb.WatchKvResponse) -> None:
        if member.index in self._silent:
            message = wpb.WatchKvResponse(epoch=message.epoch, load=message.load)
        if self._network.delay_s:
            self._at(self.now + self._network.delay_s, self._hear, member, message)
        else:
            self._hear(member, message)

    def _hear(self, member: Member, message: wpb.WatchKvResponse) -> None:
        for ask in self.core.roster.ingest(member.address, message, self.now):
            if ask is not None:
                for answer in member.announcer.repeat(ask.epoch, ask.after_seq, self.now):
                    self._send(member, answer)
