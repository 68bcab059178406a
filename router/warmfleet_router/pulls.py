"""What a worker could bring from a peer instead of computing it, and whether that is worth it.

A pull runs while the request queues: only what it takes beyond the wait delays the first token.
"""

from collections.abc import Mapping
from typing import NamedTuple

from warmfleet_router.fleet import Worker
from warmfleet_router.group import Group
from warmfleet_router.policy.base import PullPlan

WORTH = 2.0  # computing also delays others: a second saved there is worth this many of the request's own


class Giver(NamedTuple):
    """The peer that blocks would come from: of one request, the same for whoever pulls."""

    worker: Worker
    tokens: int  # leading ones that it holds
    busy_s: float  # until its link is free


def giver(group: Group, held: Mapping[int, int], now: float) -> Giver | None:
    """Who saves most: by what it holds (``held``: leading blocks by slot), less the wait for its link."""
    best, most = None, 0.0
    for slot, blocks in held.items():
        if not blocks:
            continue
        worker = group.workers[slot]
        if not worker.connected or worker.identity is None or not worker.identity.gives_blocks:
            continue
        tokens, busy_s = blocks * group.block_size, max(worker.sending_until - now, 0.0)
        saved_s = tokens * worker.rates.prefill.coefficients[1] - busy_s
        if saved_s > most:
            best, most = Giver(worker, tokens, busy_s), saved_s
    return best


def plan(
    group: Group, of: Giver, worker: Worker, overlap: int, prompt: int, wait_s: float
) -> PullPlan | None:
    """Of what ``of`` holds beyond the ``overlap`` tokens here; None where computing is better."""
    reach = min(of.tokens, (prompt - 1) // group.block_size * group.block_size)
    tokens = reach - overlap
    if tokens <= 0 or worker is of.worker:
        return None
    latency_s, byte_s = group.links.rate(of.worker, worker)
    sending_s = tokens * worker.identity.token_bytes * byte_s if worker.identity else 0.0
    seconds = of.busy_s + latency_s + sending_s
    saved_s = worker.rates.prefill_s(prompt - overlap, overlap) - worker.rates.prefill_s(
        prompt - reach, reach
    )
    if seconds - wait_s >= WORTH * saved_s:
        return None
    return PullPlan(of.worker, overlap, tokens, seconds, sending_s, wait_s + saved_s)
