"""One worker as the router sees it: who it is, what it last reported, what has been placed on it since, and
what the two together mean for the next request. Times are monotonic seconds.
"""

from collections import OrderedDict
from dataclasses import dataclass, field, fields
from enum import StrEnum
from math import inf

from warmfleet_proto import worker_pb2 as pb
from warmfleet_proto.limits import STUCK_AFTER_S

from warmfleet_router.events.mirror import Mirror
from warmfleet_router.fleet.agreement import Agreement
from warmfleet_router.index.approximate import Approximate
from warmfleet_router.prices.ahead import Ahead
from warmfleet_router.prices.pricing import Prefills, Rates
from warmfleet_router.window import HitHistory, Recent, Rolling

SLOW_START_S = 10.0
SLOW_START_FROM = 0.1  # of the weight that a worker has afterwards
# Share of a request's decoding that goes on beside those who decode when it begins: they are half done then.
BESIDE = 0.5


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
    """A worker's load as it last told, under the names of the WorkerLoad message; all 0 before its first."""

    running: int = 0
    waiting: int = 0
    prefill_tokens: int = 0
    context_tokens: int = 0
    free_blocks: int = 0
    cached_blocks: int = 0  # readable, not in use
    wanted_blocks: int = 0  # different blocks of the prompts of all requests there
    step_seconds_total: float = 0.0
    work: pb.Work = field(default_factory=pb.Work)
    evictions_total: int = 0
    late_hits_total: int = 0
    step_age_s: float = 0.0  # how long the step under way had run
    # Not in the message:
    at: float = 0.0  # when it came
    # Of a server that is not ours, whose report counts requests and names none:
    others_s: float = 0.0  # to compute what others have waiting there, taken to be as long as ours
    unbegun: int = 0  # how many of our own were waiting there


TOLD = [f.name for f in fields(Report) if f.name in pb.WorkerLoad.DESCRIPTOR.fields_by_name]


@dataclass(slots=True)
class Booked:
    """What this router has placed on one worker, as far as the worker's report does not show it. The Ledger
    keeps it up."""

    # Bookings that the report does not include yet:
    slots: int = 0  # sequences that they will decode
    context_tokens: int = 0  # of these sequences
    coming: Prefills = field(default_factory=Prefills)  # prompts that they expect to be computed
    # Sequences that the report includes still, though they have ended since:
    left: int = 0
    left_tokens: int = 0  # their context
    # All live bookings, whether the report includes them or not:
    alive: int = 0
    pulling: int = 0  # tokens that those without a first token pull from peers
    # Those that the report includes, until their first token: they tell how long the prompts are of which the
    # report gives the tokens.
    ahead: Ahead = field(default_factory=Ahead)
    # Of a server that is not ours, whose report names no bookings: those without a first token, the oldest
    # first, and since when the oldest one's prompt can have been computed.
    line: OrderedDict[int, None] = field(default_factory=OrderedDict)
    began: float = 0.0


@dataclass(slots=True, eq=False)
class Worker:
    """One address, and who answers there. Roster, Fleet, Ledger and Group keep it up."""

    address: str
    rates: Rates
    identity: Identity | None = None  # None until its Status has told
    slot: int = -1  # its number in the group's index; -1: in no group
    models: frozenset[str] = frozenset()  # further names that it answers to ...
    adapters: frozenset[str] = frozenset()  # ... and those of them that are computed with other weights
    epoch: int = 0
    clock_ahead_s: float = 0.0  # its monotonic clock minus ours, when it last reported
    report: Report = field(default_factory=Report)
    booked: Booked = field(default_factory=Booked)
    # What report and booked come to together. ``settle`` computes these, placements read them.
    flying: int = 0  # requests that it runs or is about to get
    queue_until: float = 0.0  # when the prompts that wait there should be computed ...
    queue_from: float = 0.0  # ... as estimated at this time
    rest_s: float = 0.0  # of work that comes after that queue, and does not shrink as time passes
    crowd_s: float = 0.0  # what its sequences add to a decode step of one more, averaged over its steps
    room: float = inf  # tokens that it has memory for; what needs more has to wait ...
    freeing_s: float = 0.0  # ... so long for each token
    guess: Approximate | None = None  # what a silent one is taken to hold
    mirror: Mirror | None = None  # what the KV events of a server that is not ours have told
    agreement: Agreement = field(default_factory=Agreement)  # of an anonymous one's answers with the index
    given_s: float = 0.0  # of prefill placed on it lately, fading
    sending_until: float = 0.0  # when it should have sent what its peers have been told to pull

    connected: bool = False
    draining: bool = False
    leaves_s: float = 0.0  # while draining: until it goes at the latest, counted from its last report
    stuck: bool = False
    heard_at: float | None = None
    full_at: float = 0.0  # when its slow start is over
    failures: int = 0  # requests that it dropped, in a row
    ejections: int = 0  # lately: each lasts longer than the one before
    ejected_until: float = 0.0

    hits: HitHistory = field(default_factory=HitHistory)
    ttft: Recent = field(default_factory=Recent)
    routed: Rolling = field(default_factory=Rolling)
    # Since start:
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
        """Peers may be told to pull blocks from it. One that does not answer would keep them waiting."""
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
        """1, or less while it starts slowly: a newcomer's prices are divided by it."""
        return min(max(1.0 - (self.full_at - now) / SLOW_START_S, SLOW_START_FROM), 1.0)

    def settle(self) -> None:
        """Computes what placements read. To be called after each change of ``report`` or ``booked``."""
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
        """Seconds until a request that comes now would be begun."""
        return max(self.queue_until - now, 0.0) + self.rest_s

    def _queue(self) -> None:
        """Sets ``queue_until``, ``queue_from`` and ``rest_s``.

        One of our workers tells the tokens in its queue; what is booked and not in its report comes after
        these. A server tells only how many requests it has. Its queue is what we have sent there, computed
        one after another since ``began``, so that it shrinks as time passes, too.
        """
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
        """Seconds to compute the prompt tokens that the worker reports.

        The report gives tokens; how long the prompts are, which matters because attention grows with length,
        is known of those that this router has booked (``ahead``). The others are taken to be of mean length.
        Tokens leave the report when their step ends, so how long the step under way has run is subtracted.
        """
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
        """The wait for a place in the batch, while it runs as many sequences as it can."""
        slots = self.identity.max_running if self.identity else 0
        over = self.flying + 1 - slots
        if not slots or over <= 0:
            return 0.0
        step_s = self.rates.step_s(slots, self.report.context_tokens)
        steps = max(self.rates.completion - 1.0, 0.0)  # the first token comes with the prefill
        return over * step_s * steps / slots

    def _memory(self) -> tuple[float, float]:
        """Tokens that there is memory for beside what is booked, and the seconds until one more is freed.

        All memory in use is taken to be freed while one completion decodes. What waits already at the worker
        is not counted: with that in the price, prefixes were spread over the workers, and memory was even
        shorter (LOG.md).
        """
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
