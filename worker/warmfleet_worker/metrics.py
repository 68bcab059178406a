"""Every metric of a worker. Counts are read from the scheduler when somebody asks, never kept twice."""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from warmfleet_worker.runner import Runner
from warmfleet_worker.sequence import Output, Reason
from warmfleet_worker.tiers.below import Below
from warmfleet_worker.tiers.metrics import FetchMetrics, TierMetrics
from warmfleet_worker.transfer.exchange import Exchange
from warmfleet_worker.transfer.pull import Failure
from warmfleet_worker.transfer.refusal import Refusal

_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)


class Metrics:
    def __init__(self, runner: Runner, exchange: Exchange, below: Below | None) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Scheduler(runner))
        self._registry.register(_Exchange(exchange))
        self._registry.register(FetchMetrics(runner))
        if below is not None:
            self._registry.register(TierMetrics(below))
        self._queue = self._histogram("queue", "Submit to first admission")
        self._prefill = self._histogram("prefill", "First admission to first token")
        runner.on_outputs = self._observe

    def text(self) -> bytes:
        """All metrics, in Prometheus' text format."""
        return generate_latest(self._registry)

    def _histogram(self, name: str, says: str) -> Histogram:
        return Histogram(f"warmfleet_worker_{name}_seconds", says, buckets=_SECONDS, registry=self._registry)

    def _observe(self, outputs: list[Output]) -> None:
        for output in outputs:
            if output.started:
                self._queue.observe(output.started.queue_s)
                self._prefill.observe(output.started.prefill_s)


class _Scheduler(Collector):
    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def collect(self) -> Iterator[Metric]:
        totals = self._runner.scheduler.totals
        cache = self._runner.scheduler.cache
        yield _counter("prompt_tokens", "Prompt tokens of admitted requests", totals.prompt_tokens)
        yield _counter("cached_tokens", "Prompt tokens read from the cache", totals.cached_tokens)
        yield _counter("completion_tokens", "Tokens delivered", totals.completion_tokens)
        yield _counter("requests", "Requests accepted", totals.requests)
        yield _counter("preemptions", "Sequences that gave up their blocks", totals.preemptions)
        yield _counter("evicted_blocks", "Cached blocks overwritten", cache.evictions)
        yield _counter("steps", "Engine steps", totals.steps)
        yield _counter("failed_steps", "Engine steps that raised", totals.failed_steps)
        yield _counter("step_seconds", "Time spent in engine steps", totals.step_seconds)
        yield self._endings()
        yield from self._gauges()

    def _endings(self) -> Metric:
        endings = CounterMetricFamily(
            "warmfleet_worker_endings", "Choices ended, by reason", labels=["reason"]
        )
        for reason in Reason:
            endings.add_metric([reason.name.lower()], self._runner.scheduler.totals.endings[reason])
        return endings

    def _gauges(self) -> Iterator[Metric]:
        load = self._runner.scheduler.load()
        yield GaugeMetricFamily("warmfleet_worker_running", "Sequences that run", value=load.running)
        yield GaugeMetricFamily("warmfleet_worker_waiting", "Sequences that wait", value=load.waiting)
        blocks = GaugeMetricFamily("warmfleet_worker_blocks", "KV blocks, by state", labels=["state"])
        blocks.add_metric(["free"], load.free_blocks)
        blocks.add_metric(["cached"], load.cached_blocks)
        blocks.add_metric(["pinned"], load.pinned_blocks)
        yield blocks
        yield GaugeMetricFamily(
            "warmfleet_worker_step_age_seconds", "Age of the step under way", value=self._runner.step_age_s
        )


class _Exchange(Collector):
    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    def collect(self) -> Iterator[Metric]:
        puller, service = self._exchange.puller, self._exchange.service
        yield _by("pulls", "Pulls ended, by what went wrong", "failure", Failure, puller.pulls)
        yield _counter("pulled_bytes", "Bytes of blocks received from peers", puller.received_bytes)
        carried = "Bytes of blocks received, by transport"
        yield _by("carried_bytes", carried, "transport", puller.transports, puller.carried)
        yield _counter("pulled_wasted_bytes", "Of those, for nothing", puller.wasted_bytes)
        yield _counter("pulled_corrupt_blocks", "Blocks that were damaged on the way", puller.corrupt.total())
        yield _counter("given_bytes", "Bytes of blocks sent to peers", self._exchange.shelf.given_bytes)
        yield GaugeMetricFamily(
            "warmfleet_worker_leases", "Leases that peers hold", value=len(self._exchange.leases)
        )
        if service is not None:
            yield _counter("lent", "Leases granted to peers", service.lent)
            yield _counter("leases_expired", "Of those, never released", service.expired)
            yield _by("leases_refused", "Leases refused, by reason", "reason", Refusal, service.refused)


def _by(name: str, says: str, label: str, kinds: Iterable[str], counts: Counter[Any]) -> Metric:
    family = CounterMetricFamily(f"warmfleet_worker_{name}", says, labels=[label])
    for kind in kinds:
        family.add_metric([str(kind) or "none"], counts[kind])
    return family


def _counter(name: str, says: str, value: float) -> Metric:
    return CounterMetricFamily(f"warmfleet_worker_{name}", says, value=value)
