"""What became of each request of a run, and the run in ten figures."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import NamedTuple


@dataclass(slots=True)
class Record:
    """One request; times in seconds."""

    conversation: int
    due: float  # after the start of the run
    sent: float | None = None  # later than due when the conversation's previous answer was
    status: int = 0  # of HTTP; 0: no answer yet
    ttft: float | None = None
    itls: list[float] = field(default_factory=list)  # gaps between chunks that carry text
    e2e: float | None = None  # None: not finished when the run was cut
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    worker: str = ""  # that answered, where a server says so
    error: str = ""

    @property
    def finished(self) -> bool:
        return self.e2e is not None and not self.error


class Summary(NamedTuple):
    """Figures of one run. A request that was sent and not answered counts in TTFT with the time that it
    waited."""

    requests: int
    finished: int
    errors: int
    hit_rate: float  # cached / prompt tokens of the finished requests
    ttft_mean: float
    ttft_p50: float
    ttft_p99: float
    itl_mean: float
    itl_p99: float
    e2e_mean: float


def summarise(records: Sequence[Record]) -> Summary:
    finished = [r for r in records if r.finished]
    ttfts = [r.ttft for r in records if r.ttft is not None]
    itls = [itl for r in records for itl in r.itls]
    prompt = sum(r.prompt_tokens for r in finished)
    return Summary(
        requests=len(records),
        finished=len(finished),
        errors=sum(bool(r.error) for r in records),
        hit_rate=sum(r.cached_tokens for r in finished) / max(1, prompt),
        ttft_mean=mean(ttfts),
        ttft_p50=percentile(ttfts, 0.5),
        ttft_p99=percentile(ttfts, 0.99),
        itl_mean=mean(itls),
        itl_p99=percentile(itls, 0.99),
        e2e_mean=mean([r.e2e for r in finished if r.e2e is not None]),
    )


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least ``share`` of the values do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, ceil(share * len(ordered)) - 1)] if ordered else 0.0
