"""One placement: who may serve a request, at what price, and who does.

The same code serves live requests, dry runs and trace replay.
"""

from collections.abc import Mapping, Sequence

import msgspec

from warmfleet_router.fleet.group import Group
from warmfleet_router.fleet.worker import Worker
from warmfleet_router.moving.bring import bringing, giver
from warmfleet_router.offers import Offers, offers
from warmfleet_router.policy.base import Ask, Candidate, Choice, Policy, Pool, Terms
from warmfleet_router.request import Request


class Decision(msgspec.Struct):
    """What a placement chose, and all that it chose from."""

    group: Group
    ask: Ask
    choice: Choice
    terms: Terms
    candidates: Sequence[Candidate]
    available: int  # tokens: the largest overlap at any worker
    shortest_s: float  # wait of any candidate
    least_s: float  # prefill of any candidate
    worker: Worker  # chosen
    price_s: float
    ttft_s: float  # predicted


class _Survey(msgspec.Struct):
    """What one group of workers would take to serve the request."""

    group: Group
    ask: Ask
    offers: Offers


def decide(
    policy: Policy, request: Request, pools: Sequence[tuple[Group, Pool]], ticket: int, now: float
) -> Decision:
    """Among all ``pools``, none of which is empty. Changes nothing."""
    if len(pools) > 1:
        surveys = [_survey(policy, request, group, pool, ticket, now) for group, pool in pools]
        return _among(policy, surveys)
    group, pool = pools[0]
    survey = _survey(policy, request, group, pool, ticket, now)
    choice = policy.choose(survey.ask, survey.offers.candidates)
    return _decision(policy, group, survey.ask, choice, survey.offers)


def _among(policy: Policy, surveys: Sequence[_Survey]) -> Decision:
    """Several groups serve the model: their candidates compete, each judged by what is soonest anywhere."""
    soonest_s = min(survey.ask.soonest_s for survey in surveys)
    asks = [msgspec.structs.replace(survey.ask, soonest_s=soonest_s) for survey in surveys]
    candidates = [candidate for survey in surveys for candidate in survey.offers.candidates]
    choice = policy.choose(asks[0], candidates)
    worker = choice.candidate.worker
    chosen = next(i for i, s in enumerate(surveys) if s.group.workers.get(worker.slot) is worker)
    found = surveys[chosen].offers._replace(
        candidates=candidates,
        shortest_s=min(survey.offers.shortest_s for survey in surveys),
        least_s=min(survey.offers.least_s for survey in surveys),
    )
    made = _decision(policy, surveys[chosen].group, asks[chosen], choice, found)
    made.available = max(ask.shared for ask in asks)
    return made


def _decision(policy: Policy, group: Group, ask: Ask, choice: Choice, found: Offers) -> Decision:
    terms = policy.terms(ask, choice.candidate)
    worker, _, wait, bring, prefill, *_ = choice.candidate  # quicker than by name
    price_s = 0.0
    for _, seconds in terms:
        price_s += seconds
    return Decision(
        group,
        ask,
        choice,
        terms,
        found.candidates,
        ask.shared,
        found.shortest_s,
        found.least_s,
        worker,
        price_s,
        wait + bring + prefill,
    )


def _survey(policy: Policy, request: Request, group: Group, pool: Pool, ticket: int, now: float) -> _Survey:
    """Prices what serving the request would take at the workers of one group that may be the best: those that
    hold most of its prompt, those with least load, and those that the policy names."""
    size, prompt = group.block_size, request.prompt_tokens
    packed = request.keys_for(group.fingerprint, size)
    keys = memoryview(packed).cast("Q")
    ask = Ask(keys, size, prompt, ticket)
    blocks, lower = group.index.leading(b"" if request.bypass_cache else packed, group.loads)
    peer = giver(group, blocks, now) if policy.pulls and group.gives_blocks else None
    most = next(iter(blocks.values()), 0)  # the first has most
    if not request.bypass_cache:
        most = _add_booked(blocks, most, group.prefixes.overlaps(keys))
    available = most * size
    if available >= prompt:
        available = prompt - 1  # the last token is always computed
    ranks = policy.nominate(ask, pool)
    for slot in ranks:
        blocks.setdefault(slot, 0)
    # A pool that was made for this request may have none of these workers: then its least loaded one it is.
    if pool is not group.pool and pool.members.isdisjoint(map(group.workers.__getitem__, blocks)):
        blocks = {min(pool.workers, key=lambda w: group.loads[w.slot]).slot: 0}
    found = offers(
        group.workers,
        pool.members,
        blocks,
        ranks,
        bringing(group, peer, lower, prompt, now) if peer or lower else None,
        prompt,
        size,
        request.max_tokens or prompt + group.most_context,
        group.demand.depth(available),
        group.pressure.reuse,
        now,
    )
    workers = len(pool.workers)
    ask.pace, ask.usual_s, ask.soonest_s = group.traffic.pace(workers, now), found.usual_s, found.soonest_s
    ask.shared = available
    if not group.copies_ahead:
        ask.outgrown = _outgrown(group, keys, available, found, workers, now)
    return _Survey(group, ask, found)


def _add_booked(blocks: dict[int, int], most: int, booked: Mapping[int, int]) -> int:
    """Counts as held what ``booked`` prompts are about to make; returns the largest number at any worker."""
    for slot, count in booked.items():
        if count > blocks.get(slot, 0):
            blocks[slot] = count
            if count > most:
                most = count
    return most


def _outgrown(
    group: Group, keys: Sequence[int], shared: int, found: Offers, workers: int, now: float
) -> float:
    own_s, holders = found.holder_s, found.holders
    return group.demand.outgrown(keys, shared, holders, workers, found.other_s - own_s, own_s, now)
