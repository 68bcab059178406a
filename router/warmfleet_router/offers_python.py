"""The inner loops of a placement: how long each worker would take to serve a request, and at what price.

This is the definition. The C extension computes the same, bit for bit, many times faster; import either one
from ``offers``.
"""

from collections.abc import Callable, Container, Mapping, Sequence
from typing import NamedTuple

from warmfleet_router.fleet.worker import Worker
from warmfleet_router.policy.base import Candidate, PullPlan
from warmfleet_router.prices.traffic import usual_wait_s

Bring = Callable[[Worker, int, float], tuple[int, float, PullPlan | None]]


class Offers(NamedTuple):
    """The candidates, at least one, and what they come to together. Seconds."""

    candidates: Sequence[Candidate]
    shortest_s: float  # the least wait
    usual_s: float  # the wait of the next requests: the harmonic mean, since they go where it is short
    soonest_s: float  # the least time to first token
    least_s: float  # the least prefill
    holders: int  # candidates that hold the shared prefix
    holder_s: float  # the least prefill at one of these; 0: there are none
    other_s: float  # the least prefill at one of the others; 0: there are none


def offers(
    workers: Mapping[int, Worker],
    members: Container[Worker],
    blocks: Mapping[int, int],
    ranks: Mapping[int, int],
    bring: Bring | None,
    prompt: int,
    block_size: int,
    longest: int,
    shared: int,
    reuse: float,
    now: float,
) -> Offers:
    """What those of ``blocks`` (leading blocks held, by slot) who are ``members`` would take to serve a
    request of ``prompt`` tokens, in that order. ValueError where there are none.

    ``workers`` are by slot; ``ranks`` are the policy's. ``bring``, asked about a worker, the tokens that it
    holds and its wait, answers with the overlap that it can have, the seconds until that is there, and the
    pull that this takes. ``longest`` bounds the tokens of the completion. Who has ``shared`` tokens counts as
    holder of the prefix. ``reuse`` is the chance that a block is missed once it is evicted.
    """
    candidates: list[Candidate] = []
    new = tuple.__new__  # what Candidate() itself calls, from Python
    for slot, held in blocks.items():
        worker = workers[slot]
        if worker not in members:
            continue
        overlap = held * block_size
        if worker.guess is not None:
            overlap = int(overlap * worker.guess.confidence)
        if overlap >= prompt:
            overlap = prompt - 1  # the last token is always computed
        queue = worker.queue_until - now
        wait = worker.rest_s + queue if queue > 0 else worker.rest_s
        lacking = prompt - overlap - worker.room
        if lacking > 0:
            wait += lacking * worker.freeing_s
        rates, eviction = worker.rates, 0.0
        if reuse:
            displaced = prompt - overlap - worker.report.free_blocks * block_size
            if displaced > 0:
                eviction = reuse * rates.queue_s(displaced)
        ready, pull = 0.0, None
        if bring is not None:
            overlap, ready, pull = bring(worker, overlap, wait)
        fields = (
            worker,
            overlap,
            wait,
            ready - wait if ready > wait else 0.0,
            rates.prefill_s(prompt - overlap, overlap),
            worker.crowd_s * (rates.completion if rates.completion < longest else longest),
            1.0 if now >= worker.full_at else worker.weight(now),
            ranks.get(slot, 0),
            eviction,
            pull,
        )
        candidates.append(new(Candidate, fields))
    return _summed(candidates, shared)


def nearest(
    candidates: Sequence[Candidate],
    soonest_s: float,
    late_s: float,
    following: float,
    outgrown: float,
    pace: float,
    most: float,
    near_share: float,
    near_s: float,
) -> list[Candidate]:
    """The cheapest candidate, and those that cost little more: at most ``near_share`` of its time to first
    token, or ``near_s``. ``prices`` has the other arguments."""
    made = prices(candidates, soonest_s, late_s, following, outgrown, pace, most)
    least = min(made)
    _, _, wait, bring, prefill, *_ = candidates[made.index(least)]
    limit = least + max(near_share * (wait + bring + prefill), near_s)
    return [c for c, price in zip(candidates, made, strict=True) if price <= limit]


def prices(
    candidates: Sequence[Candidate],
    soonest_s: float,
    late_s: float,
    following: float,
    outgrown: float,
    pace: float,
    most: float,
) -> list[float]:
    """The price of each, as ``policy/cheapest`` explains it.

    ``following`` is its lambda. By as much as the prefix is ``outgrown`` (0 to 1), ``pace`` times the
    worker's own wait, at most ``most``, takes its place. ``late_s`` divides the square of the lateness.
    """
    made = []
    for _, _, wait, bring, prefill, decode, weight, _, eviction, pull in candidates:
        own = wait + bring + prefill
        factor = following
        if outgrown:
            factor += outgrown * (min(pace * wait, most) - following)
        if pull is not None:
            eviction *= 1.0 + factor
        late = own - soonest_s
        made.append((own + factor * prefill + eviction + decode + late * late / late_s) / weight)
    return made


def _summed(candidates: list[Candidate], shared: int) -> Offers:
    prefills = [candidate.prefill_s for candidate in candidates]
    holders = [candidate.prefill_s for candidate in candidates if candidate.overlap >= shared]
    others = [candidate.prefill_s for candidate in candidates if candidate.overlap < shared]
    waits = [candidate.wait_s for candidate in candidates]
    return Offers(
        candidates,
        min(waits),
        usual_wait_s(waits),
        min([wait + bring + prefill for _, _, wait, bring, prefill, *_ in candidates]),
        min(prefills),
        len(holders),
        min(holders, default=0.0),
        min(others, default=0.0),
    )
