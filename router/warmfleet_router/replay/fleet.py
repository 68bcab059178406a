"""A whole fleet in virtual time: arrivals, the router's placement, workers' steps, events on their way.

The router is the real one (RouterCore, its index, cursors, prices and books); only the workers and
the network are modelled. Same inputs and seed, same outcome, to the byte.
"""

import heapq
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import count
from random import Random
from typing import Any, NamedTuple

from warmfleet_proto import router_pb2 as rpb
from warmfleet_proto import worker_pb2 as wpb
from warmfleet_proto.limits import HEARTBEAT_S
from warmfleet_proto.transfer_pb2 import Pulled

from warmfleet_router.core import RouterCore
from warmfleet_router.moving.replication import Order
from warmfleet_router.replay.bringing import Bringing
from warmfleet_router.replay.job import Job
from warmfleet_router.replay.member import Member
from warmfleet_router.replay.profile import Profile
from warmfleet_router.replay.trace import Request, Trace
from warmfleet_router.replay.turns import Turns
from warmfleet_router.replay.worker import Worker
from warmfleet_router.routing import Routing
from warmfleet_router.spread import Spread

MODEL = "replayed"
GATEWAY = "replay"
START_S = 30.0  # after the workers have joined: slow start is over when traffic begins
TICK_S = 0.1


class Network(NamedTuple):
    """How presence events get to the router. One that is lost is noticed by the next message."""

    delay_s: float = 0.0
    loss: float = 0.0


IDEAL = Network()


class Routers(NamedTuple):
    """Side by side over the same workers, each with books and an index of its own. A gateway asks them by the
    root of the prompt, or, where it knows no better, in turn."""

    number: int = 1
    in_turn: bool = False


ALONE = Routers()


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
        host_blocks: int = 0,
        core: RouterCore | None = None,
        silent: Mapping[int, int] | None = None,
        routers: Routers = ALONE,
        by_cost: bool = False,
    ) -> None:
        """``capacities`` in blocks, and ``host_blocks`` more in each worker's host memory. ``silent`` workers
        announce nothing, and tell so many blocks; 0: they do not tell. ``core`` is the first router.
        ``by_cost``: devices give up first what is cheapest to compute."""
        self.core = core or RouterCore(routing, seed)
        self.cores = [self.core, *(RouterCore(routing, seed + i) for i in range(1, routers.number))]
        self._spread = Spread([f"router {i}" for i in range(routers.number)])
        self._in_turn, self._turn = routers.in_turn, 0
        self.outcomes: list[Outcome] = []
        self.now = 0.0
        self._silent = silent or {}
        self._network = network
        self._random = Random(seed)  # noqa: S311 - which messages are lost
        self._queue: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = count()
        self._placed: dict[int, tuple[Request, rpb.Placement, RouterCore]] = {}
        self._pending = 0
        self._turns = Turns()
        slow = list(slowness)
        self.members = [
            Member(i, Worker(profile, block_size, blocks, slow[i] if slow else 1.0, host_blocks, by_cost))
            for i, blocks in enumerate(capacities)
        ]
        self._bringing = Bringing(self.members, self._at, self._stir)
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

    def drain(self, index: int, at_s: float, within_s: float) -> None:
        """Before ``run``: a worker is to get nothing new from ``at_s`` on, and is gone ``within_s`` later, or
        when what runs there has ended."""
        member, when = self.members[index], START_S + at_s
        self._at(when, self._drain, member, when + within_s)

    def _drain(self, member: Member, until: float) -> None:
        member.announcer.leaves_at = until
        self._tell(member)
        self._at(until, self._leave, member)

    def _leave(self, member: Member) -> None:
        if member.worker.running or member.worker.waiting:
            self._at(self.now + TICK_S, self._leave, member)
            return
        member.gone = True
        for core in self.cores:
            core.roster.remove(member.address, self.now)

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
        status = wpb.StatusResponse(
            worker=f"w{member.index}",
            epoch=member.announcer.epoch,
            model=MODEL,
            model_fingerprint=b"replay",
            block_size=block_size,
            total_blocks=self._silent.get(member.index, member.worker.cache.total),
            silent=member.index in self._silent,
            max_context=member.worker.cache.total * block_size,  # what a real worker takes at most
            max_running=member.worker.profile.max_running,
            depth=member.worker.profile.depth,
            chunk_tokens=member.worker.profile.chunk_tokens,
            engine="replay",
            block_bytes=block_size * member.worker.profile.kv_bytes_per_token,
            gives_blocks=member.worker.profile.link_bytes_per_s > 0,
        )
        for core in self.cores:
            core.roster.add(member.address)
            core.roster.joined(member.address, status, 0.0)
            for message in member.announcer.repeat(0, 0, 0.0):
                self._hear(core, member, message)

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
        if self._turns.come(request):
            self._send_on(request)
        self._next_arrival(arrivals, speed, progress)

    def _send_on(self, request: Request) -> None:
        core = self._core_for(request)
        placement = core.route(
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
        tokens = request.prompt_tokens, request.completion_tokens
        job = Job(placement.booking, request.keys, *tokens, self.now, request.answer)
        self._placed[job.booking] = request, placement, core
        if placement.action == rpb.Placement.PULL:
            job.pull = placement.pull
        member.worker.submit(job)
        member.announcer.accepted(job.booking)
        member.worker.ask_peers()  # steps of a flat engine are long, a real worker's are not
        self._begin_transfers(member)
        self._stir(member)
        if len(self.cores) > 1:
            self._tell(member)  # the others must not wait for a heartbeat to know

    def _core_for(self, request: Request) -> RouterCore:
        if self._in_turn:
            self._turn = (self._turn + 1) % len(self.cores)
            return self.cores[self._turn]
        return self.cores[self._spread.first(request.keys[0] if request.keys else 0, self.now)]

    def _started(self, job: Job) -> None:
        assert job.admitted_at is not None
        size = self.members[0].worker.block_size
        self._placed[job.booking][2].progress(
            rpb.ProgressRequest(
                booking=job.booking,
                cached_tokens=job.cached_tokens,
                queue_s=job.admitted_at - job.submitted_at,
                prefill_s=self.now - job.admitted_at,
                ttft_s=self.now - job.submitted_at,
                pulled_tokens=job.pulled * size,
                pulled_bytes=int(job.pull_bytes),
                pull_s=job.pull_s,
                loaded_bytes=job.loaded * size * self.members[0].worker.profile.kv_bytes_per_token,
                load_s=job.load_s,
                work_s=job.work_s,
            ),
            self.now,
        )

    def _ended(self, member: Member, job: Job) -> None:
        assert job.started_at is not None
        request, placement, core = self._placed.pop(job.booking)
        member.announcer.ended(job.booking)
        core.finish(
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
        if following := self._turns.ended(request):
            self._at(self.now, self._send_on, following)
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
        if not member.worker.under_way:
            self._begin(member)
        elif member.worker.interrupt(self.now - member.began_at):
            self._end_later(member)

    def _begin(self, member: Member) -> None:
        """The next step runs, and as many as may be are planned behind it."""
        worker = member.worker
        while worker.schedule(self.now) is not None:
            pass
        self._begin_transfers(member)
        member.began_at = self.now
        if worker.under_way:
            self._end_later(member)

    def _begin_transfers(self, member: Member) -> None:
        worker = member.worker
        loads, worker.loads = worker.loads, []
        for load in loads:
            self._bringing.load(member, load, self.now)
        pulls, worker.pulls = worker.pulls, []
        for job, flight in pulls:
            self._bringing.pull(member, job, flight, self.now)

    def _end_later(self, member: Member) -> None:
        member.version += 1
        self._at(member.began_at + member.worker.under_way[0].seconds, self._end, member, member.version)

    def _end(self, member: Member, version: int) -> None:
        if version != member.version:
            return
        done = member.worker.commit(self.now)
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
        if member.gone:
            return
        due = member.announcer.told_at + HEARTBEAT_S
        if due <= self.now:
            self._tell(member)
            due = self.now + HEARTBEAT_S
        self._at(due, self._beat, member)

    def _tick(self) -> None:
        for core in self.cores:
            core.heartbeat(rpb.HeartbeatRequest(gateway_id=GATEWAY), self.now)
            core.tick(self.now)
            for order in core.replication.take_orders():
                self._pending += 1
                self._bringing.order(order, self.now, partial(self._brought, core))
        self._at(self.now + TICK_S, self._tick)

    def _brought(self, core: RouterCore, order: Order, pulled: Pulled) -> None:
        self._tell(self.members[int(order.target.name[1:])])
        core.brought(order.id, pulled, self.now)
        self._pending -= 1

    def _tell(self, member: Member) -> None:
        if member.gone:
            return
        message = member.announcer.message(self.now)
        for core in self.cores:
            if not (self._network.loss and self._random.random() < self._network.loss):
                self._send(core, member, message)

    def _send(self, core: RouterCore, member: Member, message: wpb.WatchKvResponse) -> None:
        if member.index in self._silent:
            message = wpb.WatchKvResponse(epoch=message.epoch, load=message.load)
        if self._network.delay_s:
            self._at(self.now + self._network.delay_s, self._hear, core, member, message)
        else:
            self._hear(core, member, message)

    def _hear(self, core: RouterCore, member: Member, message: wpb.WatchKvResponse) -> None:
        if member.gone:
            return
        for ask in core.roster.ingest(member.address, message, self.now):
            if ask is not None:
                for answer in member.announcer.repeat(ask.epoch, ask.after_seq, self.now):
                    self._send(core, member, answer)
