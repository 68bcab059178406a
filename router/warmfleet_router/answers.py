"""Decisions and views as messages."""

from collections.abc import Iterable

from warmfleet_proto import router_pb2 as pb
from warmfleet_proto import transfer_pb2

from warmfleet_router.placement import Decision
from warmfleet_router.policy.base import Candidate, Policy, PullPlan, Terms
from warmfleet_router.view import WorkerView

SERVE, PULL = pb.Placement.SERVE, pb.Placement.PULL  # protobuf looks such names up at every use


def placement(decision: Decision, booking: int, policy: str) -> pb.Placement:
    """Filled field by field: constructors with keywords take up to three times as long."""
    worker, choice = decision.worker, decision.choice
    _, overlap, *_, pull = choice.candidate
    placed = pb.Placement()
    placed.booking = booking
    placed.worker = worker.name
    placed.address = worker.address
    placed.action = PULL if pull else SERVE
    placed.expected_tokens = overlap
    placed.available_tokens = decision.available
    placed.policy = policy
    placed.price_s = decision.price_s
    placed.reason = choice.reason
    add = placed.terms.add
    for name, seconds in decision.terms:
        if seconds:
            term = add()
            term.name, term.seconds = name, seconds
    if pull is not None:
        placed.pull.CopyFrom(_pull(pull))
    return placed


def _pull(plan: PullPlan) -> transfer_pb2.Pull:
    return transfer_pb2.Pull(
        source=plan.source.name,
        address=plan.source.address,
        from_tokens=plan.from_tokens,
        tokens=plan.tokens,
        within_s=plan.within_s,
        seconds=plan.seconds,
    )


def explanation(decision: Decision, policy: Policy, booking: int = 0) -> pb.Explanation:
    """Candidates with the lowest price first. ``booking`` of a placement that was made."""
    candidates = [_candidate(c, policy.terms(decision.ask, c)) for c in decision.candidates]
    candidates.sort(key=lambda c: c.price_s)
    return pb.Explanation(chosen=placement(decision, booking, policy.name), candidates=candidates)


def worker_list(views: Iterable[WorkerView]) -> pb.ListWorkersResponse:
    """Every field of the message is the view's field of that name."""
    names = [field.name for field in pb.WorkerView.DESCRIPTOR.fields]
    workers = [pb.WorkerView(**{name: getattr(view, name) for name in names}) for view in views]
    return pb.ListWorkersResponse(workers=workers)


def _candidate(candidate: Candidate, terms: Terms) -> pb.Candidate:
    held = "overlap" if candidate.overlap else "least booked"
    if candidate.overlap and candidate.worker.guess is not None:
        held = f"overlap by our own placements, trusted to {candidate.worker.guess.confidence:.0%}"
    pull = candidate.pull
    return pb.Candidate(
        worker=candidate.worker.name,
        overlap_tokens=candidate.overlap,
        price_s=sum(seconds for _, seconds in terms),
        terms=_terms(terms),
        why="named by the policy" if candidate.nominated else held,
        source=pull.source.name if pull else "",
        pulled_tokens=pull.tokens if pull else 0,
    )


def _terms(terms: Terms) -> list[pb.Term]:
    """The terms that are not 0, as messages."""
    return [pb.Term(name=name, seconds=seconds) for name, seconds in terms if seconds]
