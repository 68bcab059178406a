"""Views of the fleet, made when they are asked for."""

from collections.abc import Sequence

from warmfleet_router.fleet.roster import Roster
from warmfleet_router.fleet.worker import Identity, Worker
from warmfleet_router.index.index import native
from warmfleet_router.view import HitRate, Totals, WorkerView
from warmfleet_router.window import percentile

_NOBODY = Identity("", "", b"", "", 0, 0, 0, 0, 0)


def worker_view(roster: Roster, worker: Worker, routed: int, now: float) -> WorkerView:
    """``routed`` is the fleet's number of placements in the last minute."""
    identity, report = worker.identity or _NOBODY, worker.report
    group = roster.group_of(worker)
    ttft = worker.ttft.values(now)
    return WorkerView(
        worker=worker.name,
        address=worker.address,
        state=worker.state(now).value,
        model=identity.model,
        model_fingerprint=identity.fingerprint,
        engine=identity.engine,
        epoch=worker.epoch,
        block_size=identity.block_size,
        total_blocks=identity.total_blocks,
        held_blocks=group.index.held(worker.slot) if group else 0,
        max_context=identity.max_context,
        vocab_size=identity.vocab_size,
        running=report.running,
        waiting=report.waiting,
        bookings=worker.booked.alive,
        hit_minute=worker.hits.minute(now),
        hit_total=worker.hits.total,
        ttft_p50_s=percentile(ttft, 0.5),
        ttft_p95_s=percentile(ttft, 0.95),
        share=worker.routed.total(now) / routed if routed else 0.0,
        placements=worker.placements,
        dropped=worker.dropped,
        ejections=worker.all_ejections,
        recoveries=roster.cursor(worker.address).asks,
        wait_s=worker.wait_s(now),
        prefill_s_per_1k_tokens=worker.rates.prefill_s(1000, 0),
        ttft_error=worker.rates.ttft_error,
        confidence=worker.guess.confidence if worker.guess is not None else None,
        guessed_blocks=int(worker.guess.capacity) if worker.guess is not None else None,
        agreement=worker.agreement.rate,
        models=tuple(sorted(worker.models)),
        adapters=tuple(sorted(worker.adapters)),
    )


def total_view(roster: Roster, views: Sequence[WorkerView], policy: str, now: float) -> Totals:
    ttft = [value for w in roster.fleet.workers.values() for value in w.ttft.values(now)]
    return Totals(
        workers=len(views),
        healthy=sum(v.state == "healthy" for v in views),
        usable=sum(len(group.pool.workers) for group in roster.groups.values()),
        panic=any(group.panic for group in roster.groups.values()),
        total_blocks=sum(v.total_blocks for v in views),
        held_blocks=sum(v.held_blocks for v in views),
        running=sum(v.running for v in views),
        waiting=sum(v.waiting for v in views),
        bookings=sum(v.bookings for v in views),
        hit_minute=_sum([v.hit_minute for v in views]),
        hit_total=_sum([v.hit_total for v in views]),
        ttft_p50_s=percentile(ttft, 0.5),
        ttft_p95_s=percentile(ttft, 0.95),
        policy=policy,
        index_native=native,
    )


def _sum(rates: Sequence[HitRate]) -> HitRate:
    return HitRate(sum(r.hit for r in rates), sum(r.asked for r in rates))
