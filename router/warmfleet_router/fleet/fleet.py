"""The workers that the router knows: who they are, how they are, what they last reported.

Health comes from the age of messages and from how requests ended, never from keepalives. Times are
monotonic seconds.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from math import inf

from warmfleet_proto import worker_pb2 as pb
from warmfleet_proto.errors import Corrupt
from warmfleet_proto.limits import STUCK_AFTER_S

from warmfleet_router.events.mirror import Mirror
from warmfleet_router.fleet.agreement import Agreement
from warmfleet_router.index.approximate import Approximate
from warmfleet_router.prices.ahead import Ahead
from warmfleet_router.prices.pricing import Prefills, Rates
from warmfleet_router.view import Counters
from warmfleet_router.window import HitHistory, Recent, Rolling

EJECT_AFTER = 5  # consecutive dropped requests
EJECTION_S = 5.0  # times the number of ejections lately
EJECTION_CAP_S = 60.0
EJECTION_MEMORY_S = 60.0  # of good conduct wipe the slate
MAX_EJECTED = 0.5  # of the fleet
PANIC_BELOW = 0.5  # of it healthy: use whoever can be reached
SLOW_START_S = 10.0
SLOW_START_FROM = 0.1
BESIDE = 0.5  # of a request's decoding: whoever decodes when it begins is half done, on average
MOST_SECONDS = 1e9  # that a worker can have computed
OWN_STALL_S = 0.5  # between two ticks: silence in it is ours, not the workers'


class State(StrEnum):
    JOINING = "joining"  # has not told yet who it is and what it does
    HEALTHY = "healthy"
    STUCK = "stuck"  # silent on an open stream
    EJECTED = "ejected"  # failed too many requests in a row
    DRAINING = "draining"
    LOST = "lost"  # its stream broke


@dataclass(frozen=True, slots=True)
class Identity:
    """What a worker's Status tells."""

    name: str
    model: str
    fingerprint: bytes
    engine: str
    block_size: int
    total_blocks: int
    max_context: int
    max_running: int
    vocab_size: int
    silent: bool = False  # announces no presence
    token_bytes: float = 0.0  # of KV, a token
    gives_blocks: bool = False  # peers may pull its blocks
    anonymous: bool = False  # its load counts requests and names no bookings
    silence_s: float = STUCK_AFTER_S  # before it counts as stuck

    @property
    def kind(self) -> tuple[bytes, int]:
        """What workers share whose KV means the same."""
        return self.fingerprint, self.block_size


@dataclass(slots=True)
class Report:
    """A worker's load as it last told, under WorkerLoad's names; nothing before its first report."""

    running: int = 0
    waiting: int = 0
    prefill_tokens: int = 0
    context_tokens: int = 0
    free_blocks: int = 0
    cached_blocks: int = 0  # readable, not in use
    wanted_blocks: int = 0  # of the prompts of all requests there
    steps_total: int = 0
    step_seconds_total: float = 0.0
    prompt_tokens_total: int = 0
    evictions_total: int = 0
    late_hits_total: int = 0
    step_age_s: float = 0.0  # the step under way had run
    # Not told:
    at: float = 0.0
    others_s: float = 0.0  # of prompts that others have waiting at a server, as long as ours on the average
    unbegun: int = 0  # of ours that it had waiting


_TOLD = [f.name for f in fields(Report) if f.name in pb.WorkerLoad.DESCRIPTOR.fields_by_name]


@dataclass(slots=True)
class Booked:
    """Load of one worker's bookings that its report does not include yet, or includes still."""

    slots: int = 0  # sequences to decode
    coming: Prefills = field(default_factory=Prefills)  # as expected
    context_tokens: int = 0
    alive: int = 0  # bookings, included ones too
    pulling: int = 0  # tokens that they pull, until their first token
    left: int = 0  # sequences that have ended since the report
    left_tokens: int = 0  # their context
    ahead: Ahead = field(default_factory=Ahead)  # those that its report includes, until their first token
    # Where reports name none: all of them in order, until their first token, and since when the oldest's
    # prompt could be computed. What has passed since then is no longer to come.
    line: OrderedDict[int, None] = field(default_factory=OrderedDict)
    began: float = 0.0


@dataclass(slots=True, eq=False)
class Worker:
    """One address. Fleet, Ledger and Group keep it up."""

    address: str
    rates: Rates
    identity: Identity | None = None
    slot: int = -1  # its number in the group's index
    models: frozenset[str] = frozenset()  # further names that it answers to ...
    adapters: frozenset[str] = frozenset()  # ... and those of them that are computed with other weights
    epoch: int = 0
    clock_ahead_s: float = 0.0  # its monotonic clock less ours, when it last reported
    report: Report = field(default_factory=Report)
    booked: Booked = field(default_factory=Booked)
    # What report and booked come to, by ``settle``.
    flying: int = 0  # requests that it runs or is about to get
    queue_until: float = 0.0  # when the reported queue should be computed ...
    queue_from: float = 0.0  # ... as seen at this time
    rest_s: float = 0.0  # of work that comes after that queue
    guess: Approximate | None = None  # of what a silent one holds
    mirror: Mirror | None = None  # of what the events of one that is not ours told
    given_s: float = 0.0  # of prefill placed on it lately, fading
    sending_until: float = 0.0  # when what its peers have been told to pull should be sent
    agreement: Agreement = field(default_factory=Agreement)  # of an anonymous one's answers with the index
    crowd_s: float = 0.0  # what its sequences add to a decode step of one more, over all of its steps
    room: float = inf  # tokens that it has memory for; more have to wait ...
    freeing_s: float = 0.0  # ... so long each

    connected: bool = False
    draining: bool = False
    leaves_s: float = 0.0  # while draining: until it goes, when it last reported
    stuck: bool = False
    heard_at: float | None = None
    full_at: float = 0.0  # slow start is over
    failures: int = 0
    ejections: int = 0
    ejected_until: float = 0.0

    hits: HitHistory = field(default_factory=HitHistory)
    ttft: Recent = field(default_factory=Recent)
    routed: Rolling = field(default_factory=Rolling)
    placements: int = 0
    dropped: int = 0
    all_ejections: int = 0

    @property
    def name(self) -> str:
        return self.identity.name if self.identity else self.address

    @property
    def anonymous(self) -> bool:
        return self.identity is not None and self.identity.anonymous

    @property
    def gives(self) -> bool:
        """Peers may be told to bring blocks from it; who is silent would keep them waiting."""
        return self.connected and not self.stuck and self.identity is not None and self.identity.gives_blocks

    def state(self, now: float) -> State:
        if self.identity is None or self.heard_at is None:
            return State.JOINING
        if not self.connected:
            return State.LOST
        if self.draining:
            return State.DRAINING
        if self.stuck:
            return State.STUCK
        return State.EJECTED if now < self.ejected_until else State.HEALTHY

    def weight(self, now: float) -> float:
        """Slow start: from a tenth to one."""
        return min(max(1.0 - (self.full_at - now) / SLOW_START_S, SLOW_START_FROM), 1.0)

    def settle(self) -> None:
        """After a change of report or booked."""
        report, booked = self.report, self.booked
        batch, context = report.running, report.context_tokens
        if booked.left:
            batch = max(batch - booked.left, 0)
            context = max(context - booked.left_tokens, 0)
        batch += booked.slots
        context += booked.context_tokens
        self.flying = batch + report.waiting
        self._queue()
        _, sequence, token = self.rates.step.coefficients
        self.crowd_s = BESIDE * (batch * sequence + context * token)
        self.room, self.freeing_s = self._memory()

    def wait_s(self, now: float) -> float:
        return max(self.queue_until - now, 0.0) + self.rest_s

    def _queue(self) -> None:
        """Of a report that names no bookings the queue is what we have sent there: computed in order, so that
        time takes it off as it does what is reported."""
        report, booked = self.report, self.booked
        coming_s, self.rest_s, self.queue_from = self.rates.all_s(booked.coming), self._slot_s(), report.at
        if self.anonymous:
            if booked.line:
                self.queue_from = max(report.at, booked.began)
            unbegun_s = coming_s * min(report.unbegun / max(booked.coming.prompts, 1), 1.0)
            until = max(booked.began + coming_s, report.at + unbegun_s, self.queue_from)
            self.queue_until = until + report.others_s
        else:
            self.queue_until = report.at + self._queue_s() + report.others_s
            self.rest_s += coming_s

    def _queue_s(self) -> float:
        """What the reported tokens take. How long the prompts are only the books know: where attention
        weighs, half of one long prompt is more than two short ones, and its second half more than its first.
        What the books do not know is of mean length. Tokens leave the report when their step ends: the step's
        age counts against them."""
        ahead, tokens = self.booked.ahead, self.report.prefill_tokens
        if not tokens:
            return 0.0
        known = ahead.sums.tokens
        if known > tokens:
            known = tokens
        seconds = self.rates.queue_s(tokens - known)
        if known:
            seconds += self.rates.all_s(ahead.left(known))
        seconds -= self.report.step_age_s
        return seconds if seconds > 0.0 else 0.0

    def _slot_s(self) -> float:
        """Until a sequence ends, where one more would be above what it runs at once."""
        slots = self.identity.max_running if self.identity else 0
        over = self.flying + 1 - slots
        if not slots or over <= 0:
            return 0.0
        step_s = self.rates.step_s(slots, self.report.context_tokens)
        return (
            over * step_s * max(self.rates.completion - 1.0, 0.0) / slots
        )  # the first comes with the prefill

    def _memory(self) -> tuple[float, float]:
        """Tokens that there is memory for beside what is on its way, and the seconds in which one more is
        freed: all that is used goes while one completion decodes. What waits already is not counted: that
        price spread prefixes over the workers, and then more memory was short (LOG.md)."""
        report, identity = self.report, self.identity
        if identity is None or identity.anonymous or not report.running:
            return inf, 0.0
        available = report.free_blocks + report.cached_blocks
        used = (identity.total_blocks - available) * identity.block_size
        if used <= 0:
            return inf, 0.0
        step_s = self.rates.step_s(report.running, report.context_tokens)
        decode_s = step_s * max(self.rates.completion - 1.0, 0.0)
        return float(available * identity.block_size - self.booked.coming.tokens), decode_s / used


class Fleet:
    """All known workers, by address."""

    def __init__(self, counters: Counters) -> None:
        self.workers: dict[str, Worker] = {}
        self._counters = counters
        self._ticked_at: float | None = None
        self._began_at: float | None = None  # the first worker came

    def named(self, name: str) -> Worker | None:
        return next((w for w in self.workers.values() if w.identity and w.identity.name == name), None)

    # ---- what is heard

    def incarnated(self, worker: Worker, epoch: int, now: float) -> bool:
        """A new epoch owes nothing for what the old one did."""
        if worker.epoch == epoch:
            return False
        worker.epoch = epoch
        worker.report = Report()
        worker.booked.left = worker.booked.left_tokens = 0
        worker.sending_until = 0.0
        worker.hits.begin_epoch()
        worker.agreement = Agreement()
        worker.failures = worker.ejections = 0
        worker.ejected_until = 0.0
        worker.full_at = now if self._is_young(now) else now + SLOW_START_S
        return True

    def _is_young(self, now: float) -> bool:
        """All workers are as new as whoever comes now: nobody can take the work that a newcomer is spared,
        and who joined a moment earlier must not look several times cheaper."""
        if self._began_at is None:
            self._began_at = now
        return now - self._began_at < SLOW_START_S

    def heard(self, worker: Worker, now: float) -> None:
        worker.heard_at = now
        worker.connected = True
        worker.stuck = False

    def broken(self, worker: Worker) -> None:
        worker.connected = worker.stuck = False

    def reported(self, worker: Worker, load: pb.WorkerLoad, now: float) -> None:
        """Takes over the load and learns from what the steps since the last report took.

        Raises Corrupt for seconds that are none: they would spoil every price.
        """
        for name in ("step_seconds_total", "step_age_s", "clock_s", "leaves_s"):
            if not 0.0 <= getattr(load, name) <= MOST_SECONDS:
                raise Corrupt(f"{name} = {getattr(load, name)}", worker.address)
        before = worker.report
        worker.report = Report(at=now, **{name: getattr(load, name) for name in _TOLD})
        worker.booked.left = worker.booked.left_tokens = 0
        worker.draining = load.draining
        worker.leaves_s = load.leaves_s
        worker.clock_ahead_s = load.clock_s - now
        if not worker.anonymous:
            worker.hits.report(now, load.cached_tokens_total, load.prompt_tokens_total)
        _learn_step(worker.rates, before, worker.report)

    # ---- how requests end

    def succeeded(self, worker: Worker) -> None:
        worker.failures = 0

    def dropped(self, worker: Worker, now: float) -> None:
        """One more request that it failed; a row of them ejects it, within the share that may be."""
        worker.dropped += 1
        worker.failures += 1
        if worker.failures < EJECT_AFTER or worker.state(now) is not State.HEALTHY:
            return
        out = sum(w.state(now) is State.EJECTED for w in self.workers.values())
        if out + 1 > MAX_EJECTED * len(self.workers):
            return
        if now - worker.ejected_until > EJECTION_MEMORY_S:
            worker.ejections = 0
        worker.failures = 0
        worker.ejections += 1
        worker.all_ejections += 1
        worker.ejected_until = now + min(EJECTION_S * worker.ejections, EJECTION_CAP_S)
        worker.full_at = worker.ejected_until + SLOW_START_S
        self._counters.ejections += 1

    # ---- time

    def tick(self, now: float) -> None:
        """Notices silence. If we have been stopped ourselves, the workers are given that time again."""
        stalled = self._ticked_at is not None and now - self._ticked_at > OWN_STALL_S
        self._ticked_at = now
        for worker in self.workers.values():
            if worker.heard_at is None:
                continue
            if stalled:
                worker.heard_at = now
            patience = worker.identity.silence_s if worker.identity else STUCK_AFTER_S
            worker.stuck = worker.connected and now - worker.heard_at > patience


def usable(workers: Sequence[Worker], now: float) -> tuple[list[Worker], bool]:
    """Who may be placed on, and whether that is in panic: under half of those that count healthy."""
    states = [(worker, worker.state(now)) for worker in workers]
    healthy = [worker for worker, state in states if state is State.HEALTHY]
    counted = sum(state is not State.JOINING and state is not State.DRAINING for _, state in states)
    if not counted or len(healthy) >= PANIC_BELOW * counted:
        return healthy, False
    reachable = (State.HEALTHY, State.STUCK, State.EJECTED)
    return [worker for worker, state in states if state in reachable], True


def _learn_step(rates: Rates, before: Report, after: Report) -> None:
    """From steps that only decoded: no prompt was waiting or arrived in between."""
    steps = after.steps_total - before.steps_total
    quiet = not before.prefill_tokens and not after.prefill_tokens
    quiet = quiet and after.prompt_tokens_total == before.prompt_tokens_total
    if before.at and quiet and steps > 0 and before.running:
        batch = 0.5 * (before.running + after.running)
        context = 0.5 * (before.context_tokens + after.context_tokens)
        rates.observe_step(batch, context, (after.step_seconds_total - before.step_seconds_total) / steps)
