"""What was fetched from where, and what the tiers below the device hold, take and lose."""

from collections import Counter
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from warmfleet_worker.runner import Runner
from warmfleet_worker.source import Source
from warmfleet_worker.tiers.below import Below

_SOURCES = {Source.HOST: "host", Source.DISK: "disk", Source.PEER: "peer"}
_KINDS = ("copy", "write", "read", "corrupt")


class FetchMetrics(Collector):
    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def collect(self) -> Iterator[Metric]:
        totals = self._runner.scheduler.fetching.totals
        size = self._runner.engine.block_bytes
        wasted = Counter({source: size * blocks for source, blocks in totals.wasted.items()})
        brought = self._runner.scheduler.totals.brought
        yield _by_source("brought_tokens", "Cached prompt tokens that were fetched for a request", brought)
        yield _by_source("fetches", "Fetches begun", totals.fetches)
        yield _by_source("fetched_blocks", "Blocks that fetches brought", totals.arrived)
        yield _by_source("fetch_failed_blocks", "Blocks that fetches did not bring", totals.failed)
        yield _by_source("fetches_late", "Fetches given up: computing was quicker", totals.late)
        yield _by_source("fetch_wasted_bytes", "Bytes that came when nobody waited any more", wasted)


class TierMetrics(Collector):
    def __init__(self, below: Below) -> None:
        self._below = below

    def collect(self) -> Iterator[Metric]:
        below, store, pool = self._below, self._below.store, self._below.host.cache.pool
        size = below.block_bytes
        blocks = GaugeMetricFamily(
            "warmfleet_worker_tier_blocks", "Blocks held below the device", labels=["tier"]
        )
        used = GaugeMetricFamily("warmfleet_worker_tier_bytes", "Bytes that they take", labels=["tier"])
        held = pool.total - pool.free
        blocks.add_metric(["host"], held)
        used.add_metric(["host"], held * size)
        if store is not None:
            blocks.add_metric(["disk"], len(store))
            used.add_metric(["disk"], store.used_bytes)
        yield from (blocks, used)
        yield self._labelled("written_blocks", "Blocks written back", below.writeback.saved, below.spilled)
        lost = below.writeback.dropped + below.writeback.outrun
        yield self._labelled("unwritten_blocks", "Blocks not written back", lost, below.unspilled)
        corrupt = store.corrupt if store else 0
        yield self._labelled(
            "corrupt_blocks", "Blocks found wrong, and not served", below.host.corrupt, corrupt
        )
        yield self._labelled("evicted_blocks", "Blocks overwritten", below.host.cache.evictions, None)
        errors = CounterMetricFamily("warmfleet_worker_tier_errors", "Errors of tiers", labels=["kind"])
        for kind in _KINDS:
            errors.add_metric([kind], below.complaints.counts[kind])
        yield errors

    def _labelled(self, name: str, says: str, host: int, disk: int | None) -> Metric:
        family = CounterMetricFamily(f"warmfleet_worker_tier_{name}", says, labels=["tier"])
        family.add_metric(["host"], host)
        if disk is not None and self._below.store is not None:
            family.add_metric(["disk"], disk)
        return family


def _by_source(name: str, says: str, counts: "Counter[Source]") -> Metric:
    family = CounterMetricFamily(f"warmfleet_worker_{name}", says, labels=["source"])
    for source, label in _SOURCES.items():
        family.add_metric([label], counts[source])
    return family
