"""A router core that shows fixed views, for tests of what reads them."""

from dataclasses import replace
from typing import Any

from warmfleet_proto import router_pb2 as pb
from warmfleet_router.moving.moves import Moves
from warmfleet_router.view import Counters, HitRate, PlacementView, Totals, WorkerView

WORKER = WorkerView(
    worker="w0",
    address="127.0.0.1:50051",
    state="healthy",
    model="tiny",
    model_fingerprint=b"f" * 32,
    engine="sim",
    epoch=2**63,
    block_size=16,
    total_blocks=200,
    held_blocks=50,
    max_context=4096,
    vocab_size=512,
    running=2,
    waiting=1,
    bookings=3,
    hit_minute=HitRate(30, 120),
    hit_total=HitRate(600, 800),
    ttft_p50_s=0.02,
    ttft_p95_s=None,
    share=0.5,
    placements=10,
    dropped=0,
    ejections=0,
    recoveries=1,
    wait_s=0.01,
    prefill_s_per_1k_tokens=0.5,
    ttft_error=None,
)

PLACEMENT = PlacementView(
    at=90.0,
    booking=2**64 - 1,
    request_id="r-1",
    tenant="",
    model="tiny",
    worker="w0",
    policy="cheapest",
    reason="holds 64 of 100 prompt tokens",
    price_s=0.1,
    terms=(("wait", 0.02), ("prefill", 0.08)),
    prompt_tokens=100,
    available_tokens=80,
    expected_tokens=64,
    delivered_tokens=None,
    predicted_ttft_s=0.1,
    ttft_s=None,
    ending="",
)

EXPLANATION = pb.Explanation(
    chosen=pb.Placement(worker="w0", policy="cheapest", reason="cheapest of 2", available_tokens=80),
    candidates=[
        pb.Candidate(
            worker="w0",
            overlap_tokens=64,
            price_s=0.1,
            terms=[pb.Term(name="wait", seconds=0.02), pb.Term(name="prefill", seconds=0.08)],
            why="overlap",
        ),
        pb.Candidate(
            worker="w1", price_s=1.5, terms=[pb.Term(name="prefill", seconds=1.5)], why="least booked"
        ),
    ],
)


class FixedCore:
    """Answers with whatever the test has put into its attributes."""

    def __init__(self) -> None:
        self.counters = Counters(placements=7)
        self.moves = Moves()
        self.shown = [WORKER]
        self.placed = [PLACEMENT]
        self.index_native = False

    def set_worker(self, **changes: Any) -> None:
        self.shown = [replace(self.shown[0], **changes), *self.shown[1:]]

    def workers(self, now: float) -> list[WorkerView]:
        return self.shown

    def recall(self, request_id: str, booking: int) -> list[tuple[PlacementView, pb.Explanation]]:
        wanted = [p for p in self.placed if p.request_id == request_id or p.booking == booking]
        return [(p, EXPLANATION) for p in wanted]

    def explain(self, request: pb.RouteRequest, now: float) -> pb.Explanation:
        return EXPLANATION

    def placements(self, limit: int) -> list[PlacementView]:
        return self.placed[:limit]

    def totals(self, now: float) -> Totals:
        return Totals(
            workers=len(self.shown),
            healthy=sum(w.state == "healthy" for w in self.shown),
            usable=len(self.shown),
            panic=False,
            total_blocks=sum(w.total_blocks for w in self.shown),
            held_blocks=sum(w.held_blocks for w in self.shown),
            running=sum(w.running for w in self.shown),
            waiting=sum(w.waiting for w in self.shown),
            bookings=sum(w.bookings for w in self.shown),
            hit_minute=HitRate(
                sum(w.hit_minute.hit for w in self.shown), sum(w.hit_minute.asked for w in self.shown)
            ),
            hit_total=HitRate(
                sum(w.hit_total.hit for w in self.shown), sum(w.hit_total.asked for w in self.shown)
            ),
            ttft_p50_s=0.02,
            ttft_p95_s=None,
            policy="cheapest",
            index_native=self.index_native,
        )
