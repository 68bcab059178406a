"""What the router shows of itself: plain values for the admin page, the metrics and the log.

Times are seconds on the router's monotonic clock, lengths are tokens unless the name says blocks.
"""

from dataclasses import dataclass
from typing import NamedTuple


class HitRate(NamedTuple):
    """Prompt tokens found in a cache, of the prompt tokens asked."""

    hit: int = 0
    asked: int = 0

    @property
    def rate(self) -> float | None:
        """0 to 1; None when nothing was asked."""
        return self.hit / self.asked if self.asked else None


@dataclass(frozen=True, slots=True)
class WorkerView:
    """One worker as the router sees it now. What only its Status tells is empty while it is joining."""

    worker: str  # its name; the address until it has told it
    address: str
    state: str  # joining, healthy, stuck, ejected, draining, lost
    model: str
    model_fingerprint: bytes
    engine: str
    epoch: int
    block_size: int
    total_blocks: int
    held_blocks: int  # by the index, any tier
    max_context: int
    vocab_size: int
    running: int
    waiting: int
    bookings: int  # alive on this router
    hit_minute: HitRate
    hit_total: HitRate  # since the first of its epochs that this router saw began
    ttft_p50_s: float | None  # of the last five minutes
    ttft_p95_s: float | None
    share: float  # of the fleet's placements in the last minute, 0 to 1
    placements: int  # since start
    dropped: int  # Finish(dropped) since start
    ejections: int
    recoveries: int  # replays and snapshots asked for since start
    wait_s: float  # predicted queue of a new request
    prefill_s_per_1k_tokens: float  # learned price of 1,000 uncached tokens without context
    ttft_error: float | None  # learned mean of |measured - predicted| / measured
    confidence: float | None = None  # in what a silent worker is taken to hold, 0 to 1
    guessed_blocks: int | None = None  # its learned capacity
    models: tuple[str, ...] = ()  # further names that it answers to
    adapters: tuple[str, ...] = ()  # of those: computed with other weights
    agreement: float | None = None  # share of answers that found what events had told, 0 to 1

    @property
    def silent(self) -> bool:
        """It announces no presence: what it holds is guessed."""
        return self.confidence is not None


@dataclass(frozen=True, slots=True)
class PlacementView:
    """One past placement. Overlaps are None until known."""

    at: float
    booking: int
    request_id: str
    tenant: str
    model: str
    worker: str
    policy: str
    reason: str
    price_s: float
    terms: tuple[tuple[str, float], ...]
    prompt_tokens: int
    available_tokens: int  # largest overlap at any worker
    expected_tokens: int  # overlap at the chosen worker
    delivered_tokens: int | None  # that the worker reports as cached
    predicted_ttft_s: float
    ttft_s: float | None
    ending: str  # "" while alive, then ok, ignore, dropped, expired


@dataclass(frozen=True, slots=True)
class Totals:
    """The fleet in one line."""

    workers: int
    healthy: int
    usable: int  # by the next placement
    panic: bool
    total_blocks: int
    held_blocks: int
    running: int
    waiting: int
    bookings: int
    hit_minute: HitRate
    hit_total: HitRate
    ttft_p50_s: float | None
    ttft_p95_s: float | None
    policy: str
    index_native: bool


@dataclass(slots=True)
class Counters:
    """Events since start. Only ever grow."""

    placements: int = 0
    rejected: int = 0
    bad_requests: int = 0
    explained: int = 0
    progress: int = 0
    finished_ok: int = 0
    finished_ignore: int = 0
    finished_dropped: int = 0
    finished_unknown: int = 0  # ended or expired before
    expired: int = 0
    panic: int = 0  # placements made while under half of the fleet was healthy
    ejections: int = 0
    kv_batches: int = 0
    kv_duplicates: int = 0
    kv_gaps: int = 0
    kv_bad_digests: int = 0
    kv_malformed: int = 0
    kv_new_epochs: int = 0
    kv_snapshots: int = 0
    kv_distrusted: int = 0  # servers whose answers and events disagreed
    kv_held_dropped: int = 0  # batches let go because too many waited for a replay
    expected_tokens: int = 0  # overlap at the chosen workers, sum over placements
    available_tokens: int = 0
    delivered_tokens: int = 0  # sum over requests that reached their first token
    prompt_tokens: int = 0  # sum over placements
    replications: int = 0  # copies of prefixes ordered ahead of requests
    evacuations: int = 0  # ... because who held them was about to go
    bring_failures: int = 0  # of both, that did not come whole
    decision_lines: int = 0  # of the decision log
    decision_lines_dropped: int = 0
