"""What a worker could bring instead of computing it: pulled from a peer, or loaded from its own lower tiers.

Blocks are brought while the request waits in the queue. So only the time that this takes beyond the wait
delays the first token.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from warmfleet_router.fleet.group import Group
from warmfleet_router.fleet.worker import Worker
from warmfleet_router.policy.base import PullPlan

WORTH = 2.0  # computing also delays others: a second saved there is worth this many of the request's own


class Giver(NamedTuple):
    """The peer that would send the blocks of one request, whoever pulls them."""

    worker: Worker
    tokens: int  # leading ones that it holds
    busy_s: float  # until its link is free


def giver(group: Group, held: Mapping[int, int], now: float) -> Giver | None:
    """The peer from which pulling saves most: the time to compute what it holds, minus the wait for its link.
    ``held``: leading blocks, by slot."""
    best, most = None, 0.0
    for slot, blocks in held.items():
        if not blocks:
            continue
        worker = group.workers[slot]
        if not worker.gives:
            continue
        tokens, busy_s = blocks * group.block_size, max(worker.sending_until - now, 0.0)
        saved_s = tokens * worker.rates.prefill.coefficients[1] - busy_s
        if saved_s > most:
            best, most = Giver(worker, tokens, busy_s), saved_s
    return best


def bringing(
    group: Group, peer: Giver | None, lower: Mapping[int, int], prompt: int, now: float
) -> Callable[[Worker, int, float], tuple[int, float, PullPlan | None]]:
    """Makes the function that ``offers`` asks what a worker would bring of a prompt. ``lower``: of the blocks
    that a worker holds, how many are in lower tiers alone, by slot."""

    def bring(worker: Worker, overlap: int, wait_s: float) -> tuple[int, float, PullPlan | None]:
        ready_s, pull = 0.0, None
        below = lower.get(worker.slot, 0) * group.block_size
        if below:
            loaded_s = load_s(group, worker, overlap, below, prompt, wait_s, now)
            if loaded_s is None:
                overlap -= below
            else:
                ready_s = loaded_s
        if peer is not None and overlap < peer.tokens:
            pull = plan(group, peer, worker, overlap, prompt, wait_s, now)
            if pull is not None:
                overlap += pull.tokens
                ready_s = max(ready_s, pull.seconds)
        return overlap, ready_s, pull

    return bring


def plan(
    group: Group, of: Giver, worker: Worker, overlap: int, prompt: int, wait_s: float, now: float
) -> PullPlan | None:
    """A pull of what ``of`` holds beyond the ``overlap`` tokens here; None if computing is better."""
    reach = min(of.tokens, (prompt - 1) // group.block_size * group.block_size)
    tokens = reach - overlap
    if tokens <= 0 or worker is of.worker or worker.identity is None or not worker.identity.gives_blocks:
        return None  # a worker that gives no blocks takes none either
    spoken_for = worker.report.wanted_blocks * group.block_size + worker.booked.pulling
    if spoken_for + tokens > worker.identity.total_blocks * group.block_size:
        return None  # it would displace what other requests wait for there
    latency_s, sending_s = group.links.seconds(of.worker.name, worker.name, tokens * group.token_bytes, now)
    seconds = of.busy_s + latency_s + sending_s
    saved_s = worker.rates.prefill_s(prompt - overlap, overlap) - worker.rates.prefill_s(
        prompt - reach, reach
    )
    if seconds - wait_s >= WORTH * saved_s:
        return None
    return PullPlan(of.worker, overlap, tokens, seconds, sending_s, wait_s + saved_s)


def load_s(
    group: Group, worker: Worker, overlap: int, lower: int, prompt: int, wait_s: float, now: float
) -> float | None:
    """Seconds to load the last ``lower`` of ``overlap`` tokens; None if computing is better."""
    seconds = sum(group.links.seconds(worker.name, worker.name, lower * group.token_bytes, now))
    rates, top = worker.rates, overlap - lower
    saved_s = rates.prefill_s(prompt - top, top) - rates.prefill_s(prompt - overlap, overlap)
    return seconds if seconds - wait_s < WORTH * saved_s else None
