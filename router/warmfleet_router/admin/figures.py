"""What the admin page's JSON says: the core's views under names that carry their units. Pure."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from warmfleet_proto import router_pb2 as pb

from warmfleet_router.admin import words
from warmfleet_router.discovery import SourceView
from warmfleet_router.moving.moves import Moved
from warmfleet_router.view import HitRate, PlacementView, Totals, WorkerView

# Fields of views that only gateways need, and those that are shown in another form.
_NOT_SHOWN = {"model_fingerprint", "block_size", "max_context", "vocab_size", "adapters"}
_NOT_SHOWN |= {"hit_minute", "hit_total", "at"}


def fleet(totals: Totals, workers: Sequence[WorkerView], placements: int, uptime_s: float) -> dict[str, Any]:
    """The fleet in one object; ``placements`` since start."""
    return _fields(totals) | {
        "models": sorted({w.model for w in workers if w.model}),
        "uptime_s": uptime_s,
        "placements": placements,
        "hit_rate": _hit_rate(totals),
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
    return _fields(view) | {
        "epoch": f"{view.epoch:016x}",
        "presence": "guessed" if view.silent else "announced",
        "hit_rate": _hit_rate(view),
    }


def placement(view: PlacementView, now: float) -> dict[str, Any]:
    """Times are ages: the clock behind ``view.at`` means nothing outside this process."""
    return _fields(view) | {
        "booking": f"{view.booking:016x}",  # 64 bits: more than a JavaScript number holds
        "age_s": max(0.0, now - view.at),
        "terms": [{"name": name, "seconds": seconds} for name, seconds in view.terms],
    }


def pulls(moves: Iterable[Moved]) -> dict[str, Any]:
    """What workers brought from each other, by pair; since start."""
    return {
        "pulls": [
            _fields(moved) | {"gb_per_s": moved.bytes_per_s / 1e9, "failures": dict(moved.failures)}
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


def _fields(view: WorkerView | PlacementView | Totals | Moved) -> dict[str, Any]:
    """A view's figures by their own names."""
    names = (field.name for field in dataclasses.fields(view))
    return {name: getattr(view, name) for name in names if name not in _NOT_SHOWN}


def _hit_rate(view: WorkerView | Totals) -> dict[str, Any]:
    return {"minute": _hits(view.hit_minute), "total": _hits(view.hit_total)}


def _hits(hits: HitRate) -> dict[str, Any]:
    return {"hit_tokens": hits.hit, "asked_tokens": hits.asked, "rate": hits.rate}
