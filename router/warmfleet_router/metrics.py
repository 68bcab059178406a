"""Every metric of the router and its gateway. Names carry units; labels come from closed sets.

What the core counts already is read from it when somebody scrapes; only what nobody else counts is
counted here. Worker names are those of the fleet as it is now; sources are listed in the configuration.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from typing import Literal, NamedTuple, Protocol

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from warmfleet_router.discovery import SourceView
from warmfleet_router.tally import Tokens
from warmfleet_router.view import Counters, Totals, WorkerView

# How a client's request ended, as the gateway tells it.
Outcome = Literal["ok", "bad_request", "rejected", "lost", "cancelled", "failed"]

_PREFIX = "warmfleet_router_"
_TTFT_BUCKETS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_ITL_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
_E2E_BUCKETS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_COST_BUCKETS = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5)  # of our own work
_LAG_PERIOD_S = 0.25


class Source(Protocol):
    """What a scrape reads of the router core. ``now`` is monotonic seconds."""

    counters: Counters

    def workers(self, now: float) -> list[WorkerView]: ...
    def totals(self, now: float) -> Totals: ...


class Metrics:
    """One process's metrics. The gateway calls the methods below; ``/metrics`` is its route."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = self._counter("requests", "Requests by how they ended.", ["outcome"])
        self._limited = self._counter(
            "limited_requests", "Requests refused because their tenant had too many in flight."
        )
        self._prompt = self._counter("gateway_prompt_tokens", "Prompt tokens of placed requests.")
        self._in_flight = Gauge(
            f"{_PREFIX}in_flight_requests", "Requests between first byte and ending.", registry=self.registry
        )
        self._ttft = self._histogram("ttft_seconds", "First byte in to first token out.", _TTFT_BUCKETS)
        self._tokens = Tokens(_PREFIX, _ITL_BUCKETS)
        self.registry.register(self._tokens)
        self._e2e = self._histogram("e2e_seconds", "First byte in to last byte out.", _E2E_BUCKETS)
        self._prepare = self._histogram(
            "prepare_seconds", "Rendering, tokenising and hashing one prompt.", _COST_BUCKETS
        )
        self._placing = self._histogram("placing_seconds", "Asking for one placement.", _COST_BUCKETS)
        self._lag = self._histogram("loop_lag_seconds", "How late the event loop is.", _COST_BUCKETS)

    def watch(self, core: Source, clock: Callable[[], float]) -> None:
        """Adds what ``core`` knows to every scrape: once, where the router runs in this process."""
        self.registry.register(CoreCollector(core, clock))

    def watch_discovery(self, views: Callable[[], Sequence[SourceView]]) -> None:
        """The same for the sources that workers are found by."""
        self.registry.register(DiscoveryCollector(views))

    def watch_routers(self, answering: Callable[[], int]) -> None:
        """Adds how many routers answer, for a gateway that has several."""
        name, about = f"{_PREFIX}answering_routers", "Routers that answered when they were last asked."
        Gauge(name, about, registry=self.registry).set_function(answering)

    def arrived(self) -> None:
        self._in_flight.inc()

    def ended(self, outcome: Outcome, e2e_s: float) -> None:
        """Once for every ``arrived``."""
        self._in_flight.dec()
        self._requests.labels(outcome=outcome).inc()
        self._e2e.observe(e2e_s)

    def limited(self) -> None:
        self._limited.inc()

    def placed(self, prompt_tokens: int, prepare_s: float, placing_s: float) -> None:
        self._prompt.inc(prompt_tokens)
        self._prepare.observe(prepare_s)
        self._placing.observe(placing_s)

    def first_token(self, ttft_s: float) -> None:
        self._ttft.observe(ttft_s)

    def tokens(self, count: int, gap_s: float | None = None) -> None:
        """``count`` more tokens sent; ``gap_s`` since the stream's last ones, None for the first."""
        self._tokens.sent(count, gap_s)

    def lagged(self, seconds: float) -> None:
        self._lag.observe(seconds)

    def routes(self) -> list[web.RouteDef]:
        return [web.get("/metrics", self._scrape)]

    async def _scrape(self, request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(self.registry), headers={"Content-Type": content_type})

    def _counter(self, name: str, about: str, labels: list[str] | None = None) -> Counter:
        return Counter(f"{_PREFIX}{name}_total", about, labels or [], registry=self.registry)

    def _histogram(self, name: str, about: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"{_PREFIX}{name}", about, buckets=buckets, registry=self.registry)


async def watch_loop(metrics: Metrics) -> None:
    """Records the event loop's lag until it is cancelled."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + _LAG_PERIOD_S
        await asyncio.sleep(_LAG_PERIOD_S)
        metrics.lagged(max(0.0, loop.time() - due))


class _Reading(NamedTuple):
    name: str
    about: str
    counts: bool  # only ever grows
    of: Callable[[WorkerView], float | None]


_READINGS = (
    _Reading("worker_healthy_ratio", "1 when the worker is healthy.", False, lambda w: w.state == "healthy"),
    _Reading("worker_capacity_blocks", "Blocks in its device's pool.", False, lambda w: w.total_blocks),
    _Reading(
        "worker_held_blocks",
        "Blocks that the index knows of, in any of its tiers.",
        False,
        lambda w: w.held_blocks,
    ),
    _Reading("worker_running_requests", "In its batch.", False, lambda w: w.running),
    _Reading("worker_waiting_requests", "In its queue.", False, lambda w: w.waiting),
    _Reading("worker_alive_bookings", "Bookings on it.", False, lambda w: w.bookings),
    _Reading("worker_ttft_p50_seconds", "Of the last five minutes.", False, lambda w: w.ttft_p50_s),
    _Reading("worker_ttft_p95_seconds", "Of the last five minutes.", False, lambda w: w.ttft_p95_s),
    _Reading("worker_wait_seconds", "Predicted queue of a new request.", False, lambda w: w.wait_s),
    _Reading(
        "worker_ttft_error_ratio",
        "Mean of |measured - predicted| over measured TTFT.",
        False,
        lambda w: w.ttft_error,
    ),
    _Reading("worker_traffic_ratio", "Share of the last minute's placements.", False, lambda w: w.share),
    _Reading(
        "worker_confidence_ratio", "In what a silent one is taken to hold.", False, lambda w: w.confidence
    ),
    _Reading(
        "worker_agreement_ratio",
        "Its answers that found what its events had told.",
        False,
        lambda w: w.agreement,
    ),
    _Reading("worker_guessed_blocks", "Learned of a silent one.", False, lambda w: w.guessed_blocks),
    _Reading("worker_prompt_tokens", "Prompt tokens it was asked for.", True, lambda w: w.hit_total.asked),
    _Reading("worker_hit_tokens", "Prompt tokens from its cache.", True, lambda w: w.hit_total.hit),
    _Reading("worker_placements", "Placements on it.", True, lambda w: w.placements),
    _Reading("worker_dropped", "Requests that it failed.", True, lambda w: w.dropped),
    _Reading("worker_ejections", "Times it was taken out.", True, lambda w: w.ejections),
    _Reading("worker_recoveries", "Replays and snapshots asked of it.", True, lambda w: w.recoveries),
)


class CoreCollector(Collector):
    """Reads the router core at each scrape, so that nothing is counted twice."""

    def __init__(self, core: Source, clock: Callable[[], float]) -> None:
        self._core = core
        self._clock = clock

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        now = self._clock()
        for field in fields(Counters):
            name, about = f"{_PREFIX}{field.name}", field.metadata["about"]
            yield CounterMetricFamily(name, about, value=getattr(self._core.counters, field.name))
        yield from _fleet(self._core.totals(now))
        workers = self._core.workers(now)
        for reading in _READINGS:
            kind = CounterMetricFamily if reading.counts else GaugeMetricFamily
            family = kind(f"{_PREFIX}{reading.name}", reading.about, labels=["worker"])
            for worker in workers:
                value = reading.of(worker)
                if value is not None:
                    family.add_metric([worker.worker], float(value))
            yield family


class DiscoveryCollector(Collector):
    def __init__(self, views: Callable[[], Sequence[SourceView]]) -> None:
        self._views = views

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        labels = ["source"]
        up = GaugeMetricFamily(
            f"{_PREFIX}discovery_up_ratio", "1 when the source can be read.", labels=labels
        )
        found = GaugeMetricFamily(f"{_PREFIX}discovered_workers", "That it names.", labels=labels)
        failures = CounterMetricFamily(
            f"{_PREFIX}discovery_failures",
            "Looks at it that failed: the fleet stayed as it was.",
            labels=labels,
        )
        for view in self._views():
            up.add_metric([view.source], float(view.ok))
            found.add_metric([view.source], float(view.found))
            failures.add_metric([view.source], float(view.failures))
        yield from (up, found, failures)


def _fleet(totals: Totals) -> Iterator[GaugeMetricFamily]:
    for name, about, value in (
        ("configured_workers", "Workers that the router knows.", totals.workers),
        ("healthy_workers", "Workers that are healthy.", totals.healthy),
        ("usable_workers", "Workers that the next placement may choose.", totals.usable),
        ("alive_bookings", "Bookings on all workers.", totals.bookings),
    ):
        yield GaugeMetricFamily(f"{_PREFIX}{name}", about, value=float(value))
