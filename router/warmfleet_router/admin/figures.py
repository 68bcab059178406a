"""What the admin page's JSON says: the core's views under names that carry their units. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from warmfleet_proto import router_pb2 as pb

from warmfleet_router.admin import words
from warmfleet_router.discovery import SourceView
from warmfleet_router.moving.moves import Moved
from warmfleet_router.view import HitRate, PlacementView, Totals, WorkerView


def fleet(totals: Totals, workers: Sequence[WorkerView], placements: int, uptime_s: float) -> dict[str, Any]:
    """The fleet in one object; ``placements`` since start."""
    return {
        "workers": totals.workers,
        "healthy": totals.healthy,
        "usable": totals.usable,
        "panic": totals.panic,
        "models": sorted({w.model for w in workers if w.model}),
        "policy": totals.policy,
        "uptime_s": uptime_s,
        "placements": placements,
        "bookings": totals.bookings,
        "index_native": totals.index_native,
        **_load(totals),
    }


def setting(sources: Iterable[SourceView], aliases: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """Where workers are found, and of each alias the models behind it with their shares."""
    return {
        "discovery": [source._asdict() for source in sources],
        "aliases": {
            alias: {model: weight / sum(weights.values()) for model, weight in weights.items()}
            for alias, weights in aliases.items()
        },
    }


def worker(view: WorkerView) -> dict[str, Any]:
    return {
        "worker": view.worker,
        "address": view.address,
        "state": view.state,
        "model": view.model,
        "engine": view.engine,
        "models": view.models,
        "epoch": f"{view.epoch:016x}",
        "bookings": view.bookings,
        "share": view.share,
        "placements": view.placements,
        "dropped": view.dropped,
        "ejections": view.ejections,
        "recoveries": view.recoveries,
        "wait_s": view.wait_s,
        "prefill_s_per_1k_tokens": view.prefill_s_per_1k,
        "ttft_error": view.ttft_error,
        "presence": "announced" if view.confidence is None else "guessed",
        "confidence": view.confidence,
        "guessed_blocks": view.guessed_blocks,
        "agreement": view.agreement,
        **_load(view),
    }


def placement(view: PlacementView, now: float) -> dict[str, Any]:
    """Times are ages: the clock behind ``view.at`` means nothing outside this process."""
    return {
        "booking": f"{view.booking:016x}",  # 64 bits: more than a JavaScript number holds
        "request_id": view.request_id,
        "age_s": max(0.0, now - view.at),
        "tenant": view.tenant,
        "model": view.model,
        "worker": view.worker,
        "policy": view.policy,
        "reason": view.reason,
        "price_s": view.price_s,
        "terms": [{"name": name, "seconds": seconds} for name, seconds in view.terms],
        "prompt_tokens": view.prompt_tokens,
        "available_tokens": view.available,
        "expected_tokens": view.expected,
        "delivered_tokens": view.delivered,
        "predicted_ttft_s": view.predicted_ttft_s,
        "ttft_s": view.ttft_s,
        "ending": view.ending,
    }


def pulls(moves: Iterable[Moved]) -> dict[str, Any]:
    """What workers brought from each other, by pair; since start."""
    return {
        "pulls": [
            {
                "source": moved.source,
                "target": moved.target,
                "pulls": moved.pulls,
                "tokens": moved.tokens,
                "bytes": moved.bytes,
                "wasted_bytes": moved.wasted_bytes,
                "seconds": moved.seconds,
                "gb_per_s": moved.bytes_per_s / 1e9,
                "saved_prefill_s": moved.saved_s,
                "ahead_bytes": moved.ahead_bytes,
                "evacuated_bytes": moved.evacuated_bytes,
                "failures": dict(moved.failures),
            }
            for moved in moves
        ]
    }


def explanation(explained: pb.Explanation, prompt_tokens: int) -> dict[str, Any]:
    """A placement, made or not, with all that it was chosen from: the lowest price first."""
    chosen = explained.chosen
    least = min((c.price_s for c in explained.candidates), default=0.0)
    return {
        "worker": chosen.worker,
        "policy": chosen.policy,
        "reason": chosen.reason,
        "price_s": chosen.price_s,
        "prompt_tokens": prompt_tokens,
        "available_tokens": chosen.available_tokens,
        "expected_tokens": chosen.expected_tokens,
        "candidates": [
            {
                "worker": c.worker,
                "chosen": c.worker == chosen.worker,
                "why": c.why,
                "overlap_tokens": c.overlap_tokens,
                "pulled_tokens": c.pulled_tokens,
                "source": c.source,
                "price_s": c.price_s,
                "terms": [
                    {"name": t.name, "seconds": t.seconds, "says": words.term(t.name, c, prompt_tokens)}
                    for t in c.terms
                ],
                "says": words.candidate(c, prompt_tokens, least),
            }
            for c in explained.candidates
        ],
    }


def _load(view: WorkerView | Totals) -> dict[str, Any]:
    return {
        "hit_rate": {"minute": _hits(view.hit_minute), "total": _hits(view.hit_total)},
        "held_blocks": view.held_blocks,
        "total_blocks": view.total_blocks,
        "running": view.running,
        "waiting": view.waiting,
        "ttft_p50_s": view.ttft_p50_s,
        "ttft_p95_s": view.ttft_p95_s,
    }


def _hits(hits: HitRate) -> dict[str, Any]:
    return {"hit_tokens": hits.hit, "asked_tokens": hits.asked, "rate": hits.rate}
