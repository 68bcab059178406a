"""What a replay showed, a row a policy, beside what no placement could beat."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec

from warmfleet_router.replay.cache import Cache, Node
from warmfleet_router.replay.fleet import Fleet
from warmfleet_router.replay.trace import Trace

GOOD_TTFT_S = 10.0


class Row(NamedTuple):
    """Seconds; ``hit``, ``utilisation`` and ``goodput`` are shares; ``skew`` the busiest worker's uncached
    work over the mean; ``imbalance`` its requests in flight over time above
    the mean. ``error`` is the mean of |predicted - measured| over the mean TTFT."""

    policy: str
    hit: float
    skew: float
    utilisation: float
    ttft_mean: float
    ttft_p50: float
    ttft_p90: float
    ttft_p99: float
    itl_p99: float
    goodput: float
    pulled_blocks: int
    finished: int
    expected: float
    available: float
    error: float
    imbalance: float


class _Column(NamedTuple):
    head: str
    of: str
    width: int
    form: str = ".3f"


_COLUMNS = (
    _Column("hit", "hit", 7),
    _Column("skew", "skew", 7),
    _Column("util", "utilisation", 7),
    _Column("ttft mean", "ttft_mean", 10),
    _Column("p50", "ttft_p50", 9),
    _Column("p90", "ttft_p90", 9),
    _Column("p99", "ttft_p99", 9),
    _Column("error", "error", 7),
    _Column("itl p99", "itl_p99", 9),
    _Column("goodput", "goodput", 9),
    _Column("pulled", "pulled_blocks", 10, "d"),
    _Column("finished", "finished", 10, "d"),
)


def summarise(policy: str, fleet: Fleet, span_s: float) -> Row:
    """``span_s`` is how long requests kept arriving."""
    outcomes = fleet.outcomes
    ttfts = sorted(o.ttft_s for o in outcomes)
    mean = _mean(ttfts)
    prompts = sum(o.prompt_tokens for o in outcomes) or 1
    work = [member.worker.prefill_s for member in fleet.members]
    flying = [0.0] * len(fleet.members)
    for outcome in outcomes:
        flying[outcome.worker] += outcome.e2e_s
    return Row(
        policy=policy,
        hit=sum(o.cached_tokens for o in outcomes) / prompts,
        skew=max(work) / _mean(work) if any(work) else 1.0,
        utilisation=_mean(work) / span_s if span_s else 0.0,
        ttft_mean=mean,
        ttft_p50=_percentile(ttfts, 0.5),
        ttft_p90=_percentile(ttfts, 0.9),
        ttft_p99=_percentile(ttfts, 0.99),
        itl_p99=_percentile(sorted(o.itl_s for o in outcomes), 0.99),
        goodput=_mean([float(o.ttft_s < GOOD_TTFT_S and not o.slow) for o in outcomes]),
        pulled_blocks=sum(member.given_blocks for member in fleet.members),
        finished=len(outcomes),
        expected=sum(o.expected_tokens for o in outcomes) / prompts,
        available=sum(o.available_tokens for o in outcomes) / prompts,
        error=_mean([abs(o.predicted_s - o.ttft_s) for o in outcomes]) / mean if mean else 0.0,
        imbalance=max(flying) / _mean(flying) - 1.0 if any(flying) else 0.0,
    )


class Bounds(NamedTuple):
    """Hit rates in tokens that no placement can beat, and what one cache of the pooled size reaches."""

    infinite: float
    pooled: float


def bounds(trace: Trace, blocks: int, counted: Sequence[bool] | None = None) -> Bounds:
    """``counted``: of each request whether it is; None: all are."""
    which = counted or [True] * len(trace.requests)
    return Bounds(_hit_rate(trace, None, which), _hit_rate(trace, blocks, which))


def table(rows: Iterable[Row], limits: Bounds | None = None) -> str:
    lines = [f"{'policy':<16}" + "".join(f"{column.head:>{column.width}}" for column in _COLUMNS)]
    for row in rows:
        cells = (f"{getattr(row, c.of):>{c.width}{c.form}}" for c in _COLUMNS)
        lines.append(f"{row.policy:<16}{''.join(cells)}")
    if limits:
        lines.append(
            f"bounds of the hit rate: infinite cache {limits.infinite:.3f}, pooled {limits.pooled:.3f}"
        )
    return "\n".join(lines)


def to_json(rows: Sequence[NamedTuple]) -> bytes:
    encoded = msgspec.json.encode([row._asdict() for row in rows])
    return msgspec.json.format(encoded, indent=2) + b"\n"


def _hit_rate(trace: Trace, blocks: int | None, counted: Sequence[bool]) -> float:
    """Hit rate of one least-recently-used cache that sees the whole trace in order."""
    size = blocks if blocks is not None else sum(len(r.keys) + len(r.answer) for r in trace.requests) + 1
    cache = Cache(size)
    hit = asked = 0
    for request, counts in zip(trace.requests, counted, strict=True):
        nodes = cache.match(request.keys)
        if counts:
            most = (request.prompt_tokens - 1) // trace.block_size
            hit += min(len(nodes), most) * trace.block_size
            asked += request.prompt_tokens
        _insert(cache, [*request.keys, *request.answer], nodes)
    return hit / asked if asked else 0.0


def _insert(cache: Cache, keys: Sequence[int], nodes: list[Node]) -> None:
    cache.pin(nodes)
    for key in keys[len(nodes) :]:
        if not cache.take(1):
            break
        nodes.append(cache.seal(key, nodes[-1] if nodes else None)[0])
    cache.unpin(nodes)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _percentile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else 0.0
