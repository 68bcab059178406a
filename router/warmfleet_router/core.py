"""The router's mind, one object per process: models, index, fleet, prices and bookings.

Pure: messages and ``now`` (monotonic seconds) go in, messages and values come out. One thread owns it.
"""

from collections import deque
from collections.abc import Iterable

import msgspec
import xxhash
from warmfleet_proto import router_pb2 as pb
from warmfleet_proto.errors import BadRequest, Rejected
from warmfleet_proto.transfer_pb2 import Pulled

from warmfleet_router import answers, learning
from warmfleet_router.booking import ID_BITS, Booking, Ledger
from warmfleet_router.fleet.group import Group
from warmfleet_router.fleet.roster import Roster
from warmfleet_router.fleet.views import total_view, worker_view
from warmfleet_router.grant import Granter, claims
from warmfleet_router.hasher import Hasher
from warmfleet_router.moving.moves import Moves
from warmfleet_router.moving.replication import Replication
from warmfleet_router.placement import Decision, decide
from warmfleet_router.policy.base import Pool
from warmfleet_router.prices.wanted import NEAR_SHARE, Prefix
from warmfleet_router.request import Request, checked
from warmfleet_router.routing import Routing, make_policy
from warmfleet_router.view import Counters, PlacementView, Totals, WorkerView

HISTORY = 100  # placements
_ENDINGS = {pb.FinishRequest.OK: "ok", pb.FinishRequest.IGNORE: "ignore", pb.FinishRequest.DROPPED: "dropped"}


class _Past(msgspec.Struct):
    """A placement, for those who ask about it later."""

    booking: Booking
    request_id: str
    tenant: str
    model: str
    worker: str  # its name: it may leave
    decision: Decision


class RouterCore:
    """Raises BadRequest and Rejected where a caller can cause it.

    ``seed`` makes booking ids and random draws; routers of one fleet need different ones. Without a
    ``granter`` pulls are placed, as a replay wants it, but no worker gives the blocks.
    """

    def __init__(self, routing: Routing, seed: int) -> None:
        self.counters = Counters()
        self.moves = Moves()
        self.replication = Replication(routing, self.counters, self.moves)
        self.granter: Granter | None = None
        self.policy = make_policy(routing, seed)
        self.hasher = Hasher()
        self._seed = seed & 0xFFFF_FFFF_FFFF_FFFF
        self._tag = xxhash.xxh64_intdigest(b"tag", self._seed) >> ID_BITS
        self._ids = 0
        self._ledger = Ledger(self._tag)
        self.roster = Roster(self._ledger, self.counters, routing)
        self._history: deque[_Past] = deque(maxlen=HISTORY)

    # ---- gateways

    def route(self, request: pb.RouteRequest | Request, now: float) -> pb.Placement:
        """Places the request and books it. One that has been checked comes from a decision log."""
        try:
            wanted = request if isinstance(request, Request) else checked(request, self.hasher)
            self._ledger.check_room()
            decision = self.decide(wanted, now)
            booking = self._book(wanted, decision, now)
        except BadRequest:
            self.counters.bad_requests += 1
            raise
        except Rejected:
            self.counters.rejected += 1
            raise
        self._count(wanted, booking, decision, now)
        placed = answers.placement(decision, booking.id, self.policy.name)
        if self.granter is not None and decision.choice.candidate.pull is not None:
            placed.pull.grant.CopyFrom(self.granter.grant(claims(decision, wanted.salt, now)))
        return placed

    def explain(self, request: pb.RouteRequest, now: float) -> pb.Explanation:
        """What ``route`` would do now, with every candidate. Changes nothing."""
        decision = self.decide(checked(request, self.hasher), now)
        self.counters.explained += 1
        return answers.explanation(decision, self.policy)

    def progress(self, request: pb.ProgressRequest, now: float) -> pb.ProgressResponse:
        """The first token has been seen. What comes again or too late is ignored."""
        booking = self._ledger.started(request.booking, now)
        if booking is not None:
            self.counters.progress += 1
            learning.first_token(self.roster, self.moves, booking, request, now)
            self.roster.changed(booking.worker)
            if (group := self.roster.group_of(booking.worker)) and booking.prefix:
                group.wanted.computed(booking.prefix)
        return pb.ProgressResponse()

    def finish(self, request: pb.FinishRequest, now: float) -> pb.FinishResponse:
        """Ends a booking; only the first call does."""
        if request.outcome not in _ENDINGS:
            raise BadRequest("outcome must be ok, ignore or dropped", "outcome")
        booking = self._ledger.end(request.booking, now)
        if booking is None:
            self.counters.finished_unknown += 1
            return pb.FinishResponse(known=False)
        if request.outcome != pb.FinishRequest.OK or not self.roster.fade(booking, now):
            self.roster.unmark(booking)
        self._ended(booking, _ENDINGS[request.outcome])
        if request.outcome == pb.FinishRequest.OK and booking.worker.anonymous:
            learning.answered(self.roster, booking, request, now)
        self._judge(booking, request, now)
        return pb.FinishResponse(known=True)

    def heartbeat(self, request: pb.HeartbeatRequest, now: float) -> pb.HeartbeatResponse:
        if request.HasField("live"):
            self._expire(self._ledger.forgotten(request.gateway_id, request.live.bookings, now))
        return pb.HeartbeatResponse(bookings=self._ledger.heartbeat(request.gateway_id, now))

    def list_workers(self, request: pb.ListWorkersRequest, now: float) -> pb.ListWorkersResponse:
        return answers.worker_list(self.workers(now))

    # ---- the page and the metrics

    def workers(self, now: float) -> list[WorkerView]:
        """Views of all workers, in the order in which they were added."""
        routed = sum(w.routed.total(now) for w in self.roster.fleet.workers.values())
        return [worker_view(self.roster, w, routed, now) for w in self.roster.fleet.workers.values()]

    def placements(self, limit: int = HISTORY) -> list[PlacementView]:
        """The latest first."""
        return [_view(past, self.policy.name) for past in list(self._history)[::-1][:limit]]

    def recall(self, request_id: str, booking: int) -> list[tuple[PlacementView, pb.Explanation]]:
        """The latest placements of this request, or with this booking, and what each chose from; the newest
        first."""
        found = [
            (_view(past, self.policy.name), answers.explanation(past.decision, self.policy, past.booking.id))
            for past in self._history
            if (request_id or None) == past.request_id or past.booking.id == booking
        ]
        return found[::-1]

    def totals(self, now: float) -> Totals:
        return total_view(self.roster, self.workers(now), self.policy.name, now)

    # ---- time

    def tick(self, now: float) -> None:
        """To be called about ten times a second."""
        self._expire(self._ledger.expire(now))
        self.roster.tick(now)
        self.replication.tick(self.roster.groups.values(), now)

    def brought(self, order_id: int, pulled: Pulled | None, now: float) -> None:
        """What came of one of ``replication``'s orders; None where the target did not take it."""
        if pulled is None or 0.0 <= pulled.seconds < learning.LONGEST_S:
            self.replication.brought(order_id, pulled, now)

    # ---- placing

    def decide(self, wanted: Request, now: float) -> Decision:
        """What ``route`` would choose now. Raises BadRequest and Rejected."""
        return decide(self.policy, wanted, self._pools(wanted), self.counters.placements, now)

    def _pools(self, wanted: Request) -> list[tuple[Group, Pool]]:
        """Where the request may go. Raises BadRequest if nowhere ever, Rejected if nowhere now."""
        groups = self.roster.models.get(wanted.model)
        if groups is None:
            if not self.roster.models:
                raise Rejected("no worker has joined yet")
            raise BadRequest(f"model {wanted.model!r} is not served here", "model", 404)
        context, pools = wanted.context, []
        for group in groups:
            pool = group.pool_for(context, wanted.exclude, wanted.model)
            if pool.workers:
                pools.append((group, pool))
        if pools:
            return pools
        longest = max(group.most_context for group in groups)
        if context > longest:
            raise BadRequest(
                f"{wanted.prompt_tokens} prompt tokens and {max(wanted.max_tokens, 1)} to be generated are "
                f"more than the context of {longest} tokens",
                "prompt",
            )
        raise Rejected(f"no worker for {wanted.model!r} can take the request now")

    def _book(self, wanted: Request, decision: Decision, now: float) -> Booking:
        """From now on the request counts as load of its worker, and its prefix as held there."""
        booking = self._booking(wanted, decision, now)
        worker, group, keys = decision.worker, decision.group, decision.ask.keys
        chosen = decision.choice.candidate
        self._ledger.book(booking)
        group.traffic.placed(chosen.prefill_s, now)
        worker.given_s += chosen.prefill_s
        booking.prefix = _want(wanted, decision, now)
        booking.marks = group.prefixes.add(worker.slot, keys, chosen.held // decision.ask.block_size)
        if worker.guess is not None and not wanted.bypass_cache:
            booking.keys, booking.since = keys, worker.guess.clock
        elif worker.mirror is not None and not wanted.bypass_cache:
            booking.mirrored, booking.since = keys, worker.mirror.clock
        if chosen.pull:
            source = chosen.pull.source
            source.sending_until = max(source.sending_until, now) + chosen.pull.sending_s
        group.settle(worker)
        return booking

    def _booking(self, wanted: Request, decision: Decision, now: float) -> Booking:
        """Not in the books yet."""
        worker, chosen = decision.worker, decision.choice.candidate
        pull = chosen.pull
        return Booking(
            id=self._next_id(),
            gateway=wanted.gateway,
            worker=worker,
            epoch=worker.epoch,
            made_at=now,
            slots=wanted.slots,
            prompt_tokens=wanted.prompt_tokens,
            expected=chosen.overlap,
            predicted_ttft_s=decision.ttft_s,
            alone=not worker.flying,
            source=pull.source.name if pull else "",
            pulling=pull.tokens if pull else 0,
            pull_bytes=pull.tokens * decision.group.token_bytes if pull else 0.0,
        )

    def _next_id(self) -> int:
        """A booking's id: this router's tag, then bits that look random. Not 0, and not in use."""
        while True:
            self._ids += 1
            digest = xxhash.xxh64_intdigest(self._ids.to_bytes(8, "little"), self._seed)
            id_ = self._tag << ID_BITS | digest & (1 << ID_BITS) - 1
            if id_ and id_ not in self._ledger:
                return id_

    def _count(self, wanted: Request, booking: Booking, decision: Decision, now: float) -> None:
        counters, worker = self.counters, booking.worker
        counters.placements += 1
        counters.panic += decision.group.panic
        counters.prompt_tokens += booking.prompt_tokens
        counters.available_tokens += decision.available
        counters.expected_tokens += booking.expected
        worker.placements += 1
        worker.routed.add(now)
        self._history.append(
            _Past(booking, wanted.request_id, wanted.tenant, wanted.model, worker.name, decision)
        )

    # ---- endings

    def _expire(self, bookings: Iterable[Booking]) -> None:
        for booking in bookings:
            self.counters.expired += 1
            self.roster.unmark(booking)
            self._ended(booking, "expired")

    def _ended(self, booking: Booking, ending: str) -> None:
        booking.ending = ending
        self.roster.changed(booking.worker)

    def _judge(self, booking: Booking, request: pb.FinishRequest, now: float) -> None:
        """What the ending says about the worker; of an incarnation before this one it says nothing."""
        worker, same = booking.worker, booking.epoch == booking.worker.epoch
        match request.outcome:
            case pb.FinishRequest.OK:
                self.counters.finished_ok += 1
                if request.completion_tokens:  # else they are not known
                    worker.rates.observe_completion(learning.completion(booking, request))
                if same:
                    self.roster.fleet.succeeded(worker)
            case pb.FinishRequest.IGNORE:
                self.counters.finished_ignore += 1
            case pb.FinishRequest.DROPPED:
                self.counters.finished_dropped += 1
                if same:
                    self.roster.failed(worker, now)


def _want(wanted: Request, decision: Decision, now: float) -> Prefix | None:
    """Takes note of what the request shares with others: that it was asked for, and how much time the request
    loses because too few workers hold it. The answer is that prefix, where copies of it may be ordered."""
    group, ask, chosen = decision.group, decision.ask, decision.choice.candidate
    least = decision.least_s
    group.demand.placed(ask.keys, ask.shared, least, now)
    if wanted.bypass_cache or not group.copies_ahead:
        return None
    prefix = group.wanted.asked(ask.keys, ask.shared, wanted.salt, now)
    if prefix is not None:
        enough = (1.0 - NEAR_SHARE) * ask.shared
        holders = sum([candidate.held >= enough for candidate in decision.candidates])
        whole_s = chosen.worker.rates.prefill_s(ask.prompt_tokens, 0)
        group.wanted.lost(
            max(holders, 1),
            max(decision.ttft_s - decision.shortest_s - least, 0.0),
            max(whole_s - least, 0.0),
            now,
        )
    return prefix


def _view(past: _Past, policy: str) -> PlacementView:
    booking, decision = past.booking, past.decision
    return PlacementView(
        at=booking.made_at,
        booking=booking.id,
        request_id=past.request_id,
        tenant=past.tenant,
        model=past.model,
        worker=past.worker,
        policy=policy,
        reason=decision.choice.reason,
        price_s=decision.price_s,
        terms=decision.terms,
        prompt_tokens=booking.prompt_tokens,
        available_tokens=decision.available,
        expected_tokens=booking.expected,
        delivered_tokens=booking.delivered,
        predicted_ttft_s=decision.ttft_s,
        ttft_s=booking.ttft_s,
        ending=booking.ending,
    )
