"""One placement: who may serve a request, at what price, and who does.

The same code serves live requests, dry runs and trace replay.
"""

from collections.abc import Sequence
from typing import NamedTuple

from warmfleet_router.bring import Giver, giver, load_s, plan
from warmfleet_router.fleet import Worker
from warmfleet_router.group import Group
from warmfleet_router.policy.base import Ask, Candidate, Choice, Policy, Pool, Terms
from warmfleet_router.request import Request
from warmfleet_router.traffic import usual_wait_s


class Decision(NamedTuple):
    group: Group
    ask: Ask
    choice: Choice
    terms: Terms
    candidates: Sequence[Candidate]
    available: int  # tokens: the largest overlap at any worker

    @property
    def worker(self) -> Worker:
        return self.choice.candidate.worker

    @property
    def price_s(self) -> float:
        return sum([seconds for _, seconds in self.terms])

    @property
    def ttft_s(self) -> float:
        """Predicted."""
        chosen = self.choice.candidate
        return chosen.wait_s + chosen.bring_s + chosen.prefill_s


def decide(
    policy: Policy, request: Request, pools: Sequence[tuple[Group, Pool]], ticket: int, now: float
) -> Decision:
    """Among all ``pools``, none of which is empty. Changes nothing."""
    surveys = [_survey(policy, request, group, pool, ticket, now) for group, pool in pools]
    if len(surveys) > 1:
        soonest_s = min(survey.ask.soonest_s for survey in surveys)
        surveys = [s._replace(ask=s.ask._replace(soonest_s=soonest_s)) for s in surveys]
    candidates = surveys[0].candidates if len(surveys) == 1 else [c for s in surveys for c in s.candidates]
    choice = policy.choose(surveys[0].ask, candidates)
    worker = choice.candidate.worker
    chosen = next(s for s in surveys if s.group.workers.get(worker.slot) is worker)
    available = max(s.available for s in surveys)
    terms = policy.terms(chosen.ask, choice.candidate)
    return Decision(chosen.group, chosen.ask, choice, terms, candidates, available)


class _Survey(NamedTuple):
    group: Group
    ask: Ask
    candidates: list[Candidate]
    available: int


def _survey(policy: Policy, request: Request, group: Group, pool: Pool, ticket: int, now: float) -> _Survey:
    packed = request.keys_for(group.fingerprint, group.block_size)
    keys = memoryview(packed).cast("Q")
    ask = Ask(keys, group.block_size, request.prompt_tokens, request.max_tokens, request.slots, ticket)
    held, lower = _held(group, b"" if request.bypass_cache else packed)
    peer = giver(group, held, now) if policy.pulls else None
    blocks = held if request.bypass_cache else _with_booked(group, held, keys)
    available = max(blocks.values(), default=0) * group.block_size
    ranks: dict[int, int] = {}
    for worker, rank in policy.nominate(ask, pool):
        ranks[worker.slot] = max(rank, ranks.get(worker.slot, 0))
        blocks.setdefault(worker.slot, 0)
    if not any(group.workers[slot] in pool.members for slot in blocks):
        blocks = {min(pool.workers, key=lambda w: group.loads[w.slot]).slot: 0}
    candidates = _candidates(group, pool, ask, blocks, lower, ranks, peer, now)
    available = min(available, request.prompt_tokens - 1)
    pace = group.traffic.pace(len(pool.workers), now)
    usual_s = usual_wait_s([candidate.wait_s for candidate in candidates])
    soonest_s = min([wait + bring + prefill for _, _, wait, bring, prefill, *_ in candidates])
    outgrown = 0.0
    if not group.copies_ahead:
        outgrown = _outgrown(group, ask, candidates, available, len(pool.workers), now)
    ask = Ask(*ask[:6], pace, usual_s, soonest_s, available, outgrown)
    return _Survey(group, ask, candidates, available)


def _outgrown(
    group: Group, ask: Ask, candidates: Sequence[Candidate], shared: int, workers: int, now: float
) -> float:
    depth = group.demand.depth(shared)
    holders = [candidate.prefill_s for candidate in candidates if candidate.overlap >= depth]
    others = [candidate.prefill_s for candidate in candidates if candidate.overlap < depth]
    own_s = min(holders, default=0.0)
    copy_s = min(others, default=0.0) - own_s
    return group.demand.outgrown(ask.keys, shared, len(holders), workers, copy_s, own_s, now)


def _held(group: Group, packed: bytes) -> tuple[dict[int, int], dict[int, int]]:
    """Leading blocks by slot, for the workers with most and for those least booked; and how many of them
    are in lower tiers, where any are."""
    held, lower = {}, {}
    for worker, blocks, device, _, _ in group.index.lookup(packed, group.loads):
        held[worker] = blocks
        if device < blocks:
            lower[worker] = blocks - device
    return held, lower


def _with_booked(group: Group, held: dict[int, int], keys: Sequence[int]) -> dict[int, int]:
    """The same with what bookings are about to make."""
    blocks = dict(held)
    for slot, booked in group.prefixes.overlaps(keys).items():
        if booked > blocks.get(slot, 0):
            blocks[slot] = booked
    return blocks


def _candidates(
    group: Group,
    pool: Pool,
    ask: Ask,
    blocks: dict[int, int],
    lower: dict[int, int],
    ranks: dict[int, int],
    peer: Giver | None,
    now: float,
) -> list[Candidate]:
    """The inner loop of a placement: a microsecond a worker, so it calls nothing that it can do itself."""
    candidates, new = [], tuple.__new__  # what Candidate() itself calls, from Python
    workers, members, prompt, size = group.workers, pool.members, ask.prompt_tokens, ask.block_size
    longest = ask.max_tokens or prompt + group.most_context
    reach = peer.tokens if peer else 0
    reuse = group.pressure.reuse
    for slot, held in blocks.items():
        worker = workers[slot]
        if worker not in members:
            continue
        overlap = held * size
        if worker.guess is not None:
            overlap = int(overlap * worker.guess.confidence)
        if overlap >= prompt:
            overlap = prompt - 1  # the last token is always computed
        queue = worker.queue_until - now
        wait = worker.rest_s + queue if queue > 0 else worker.rest_s
        rates, eviction = worker.rates, 0.0
        completion = rates.completion
        if reuse:
            displaced = prompt - overlap - worker.report.free_blocks * size
            if displaced > 0:
                eviction = reuse * rates.queue_s(displaced)
        ready, pull = 0.0, None  # when what is brought is there
        if slot in lower:
            loaded = load_s(group, worker, overlap, lower[slot] * size, prompt, wait, now)
            if loaded is None:
                overlap -= lower[slot] * size
            else:
                ready = loaded
        if peer is not None and overlap < reach:
            pull = plan(group, peer, worker, overlap, prompt, wait, now)
            if pull is not None:
                overlap += pull.tokens
                ready = max(ready, pull.seconds)
        fields = (
            worker,
            overlap,
            wait,
            ready - wait if ready > wait else 0.0,
            rates.prefill_s(prompt - overlap, overlap),
            worker.crowd_s * (completion if completion < longest else longest),
            1.0 if now >= worker.full_at else worker.weight(now),
            ranks.get(slot, 0),
            eviction,
            pull,
        )
        candidates.append(new(Candidate, fields))
    return candidates
