"""What the router shows of itself: plain values for the admin page, the metrics and the log.

Times are seconds on the router's monotonic clock, lengths are tokens unless the name says blocks.
"""

from dataclasses import dataclass, field
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


def _counter(about: str) -> int:
    """A field that begins at 0, and what /metrics says of it."""
    counter: int = field(default=0, metadata={"about": about})
    return counter


@dataclass(slots=True)
class Counters:
    """Events since start. Only ever grow."""

    placements: int = _counter("Placements made.")
    rejected: int = _counter("Requests refused for want of a worker.")
    bad_requests: int = _counter("Requests refused as wrong.")
    explained: int = _counter("Explanations given.")
    progress: int = _counter("First tokens reported.")
    finished_ok: int = _counter("Bookings that ended well.")
    finished_ignore: int = _counter("Bookings whose ending says nothing about the worker.")
    finished_dropped: int = _counter("Bookings that the worker failed.")
    finished_unknown: int = _counter("Endings of bookings that had ended or expired before.")
    expired: int = _counter("Bookings whose gateway fell silent, or does not name them any more.")
    panic: int = _counter("Placements made while under half of the fleet was healthy.")
    ejections: int = _counter("Workers taken out.")
    kv_batches: int = _counter("KV event batches read.")
    kv_duplicates: int = _counter("Batches seen before.")
    kv_gaps: int = _counter("Gaps in a worker's event log.")
    kv_bad_digests: int = _counter("Batches after which the index and the worker disagreed.")
    kv_malformed: int = _counter("Batches that broke the contract.")
    kv_new_epochs: int = _counter("Incarnations of workers begun, each one's first too.")
    kv_snapshots: int = _counter("Snapshots taken in.")
    kv_distrusted: int = _counter("Servers whose answers and KV events disagreed.")
    kv_held_dropped: int = _counter("Batches let go because too many waited for a replay.")
    expected_tokens: int = _counter("Overlap expected at the chosen workers.")
    available_tokens: int = _counter("Largest overlap that any worker held.")
    delivered_tokens: int = _counter("Prompt tokens that workers reported as cached.")
    prompt_tokens: int = _counter("Prompt tokens of all placements.")
    replications: int = _counter("Copies of prefixes ordered ahead of requests.")
    evacuations: int = _counter("Copies ordered because who held them was about to go.")
    bring_failures: int = _counter("Copies ordered that did not come whole.")
    decision_lines: int = _counter("Lines of the decision log.")
    decision_lines_dropped: int = _counter("Lines that it could not take in time.")
