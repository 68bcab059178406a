"""Metric names carry units, labels come from closed sets, and the core's figures are read, not copied."""

import asyncio
import dataclasses
from typing import get_args

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from warmfleet_router import metrics
from warmfleet_router.view import Counters

from tests.unit.router.views import WORKER, FixedCore

UNITS = ("seconds", "tokens", "blocks", "requests", "bookings", "workers", "ratio")
LABELS = {"outcome", "worker", "le"}


def _made() -> tuple[metrics.Metrics, FixedCore]:
    made, core = metrics.Metrics(), FixedCore()
    made.watch(core, lambda: 100.0)
    return made, core


def _samples(made: metrics.Metrics) -> list[Sample]:
    return [sample for family in made.registry.collect() for sample in family.samples]


def _serve(made: metrics.Metrics, request_id: int) -> None:
    outcomes = get_args(metrics.Outcome)
    made.arrived()
    made.placed(prompt_tokens=100 + request_id, prepare_s=0.001, placing_s=0.0001)
    made.first_token(0.1)
    made.tokens(1)
    made.tokens(2, gap_s=0.02)
    made.ended(outcomes[request_id % len(outcomes)], e2e_s=0.5)


def test_names_have_the_prefix_and_a_unit() -> None:
    for family in _made()[0].registry.collect():
        assert family.name.startswith("warmfleet_router_")
        assert family.documentation
        if family.type != "counter":  # a counter of events says _total
            assert family.name.endswith(UNITS), family.name


def test_traffic_adds_no_series() -> None:
    made, _ = _made()
    for request_id in range(6):
        _serve(made, request_id)
    before = {(s.name, *sorted(s.labels.items())) for s in _samples(made)}
    for request_id in range(6, 60):
        _serve(made, request_id)
    after = {(s.name, *sorted(s.labels.items())) for s in _samples(made)}
    assert before == after
    assert {label for s in _samples(made) for label in s.labels} == LABELS


def test_every_counter_of_the_core_is_scraped() -> None:
    made, core = _made()
    for i, field in enumerate(dataclasses.fields(Counters)):
        setattr(core.counters, field.name, 1000 + i)
    values = {s.name: s.value for s in _samples(made)}
    for i, field in enumerate(dataclasses.fields(Counters)):
        assert values[f"warmfleet_router_{field.name}_total"] == 1000 + i


def test_workers_are_read_at_each_scrape() -> None:
    made, core = _made()

    def held() -> dict[str, float]:
        return {
            s.labels["worker"]: s.value
            for s in _samples(made)
            if s.name == "warmfleet_router_worker_held_blocks"
        }

    assert held() == {"w0": 50}
    core.shown = [dataclasses.replace(WORKER, worker="w1", held_blocks=3)]
    assert held() == {"w1": 3}


def test_what_is_not_known_yet_has_no_sample() -> None:
    made, _ = _made()
    names = {s.name for s in _samples(made)}
    assert "warmfleet_router_worker_ttft_p50_seconds" in names
    assert "warmfleet_router_worker_ttft_p95_seconds" not in names


def test_how_far_a_worker_can_be_predicted_and_believed() -> None:
    made, core = _made()
    core.set_worker(ttft_error=0.25, agreement=0.5, confidence=0.75)
    values = {s.name: s.value for s in _samples(made) if s.labels == {"worker": "w0"}}
    shown = {name: values[f"warmfleet_router_worker_{name}_ratio"] for name in ("ttft_error", "agreement")}
    assert shown == {"ttft_error": 0.25, "agreement": 0.5}
    assert values["warmfleet_router_worker_confidence_ratio"] == 0.75


def test_ended_balances_arrived() -> None:
    made, _ = _made()
    for request_id in range(5):
        _serve(made, request_id)
    values = {s.name: s.value for s in _samples(made) if not s.labels}
    assert values["warmfleet_router_in_flight_requests"] == 0
    assert values["warmfleet_router_gateway_completion_tokens_total"] == 15
    assert values["warmfleet_router_itl_seconds_count"] == 5


async def test_scrape_over_http() -> None:
    made, _ = _made()
    app = web.Application()
    app.add_routes(made.routes())
    async with TestClient(TestServer(app)) as client:
        answer = await client.get("/metrics")
        assert answer.status == 200
        assert answer.headers["Content-Type"].startswith("text/plain")
        families = {family.name for family in text_string_to_metric_families(await answer.text())}
    assert "warmfleet_router_ttft_seconds" in families


async def test_loop_lag_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    made, seen = metrics.Metrics(), asyncio.Event()
    monkeypatch.setattr(metrics, "_LAG_PERIOD_S", 0.001)
    monkeypatch.setattr(made, "lagged", lambda lag: seen.set())
    watcher = asyncio.create_task(metrics.watch_loop(made))
    async with asyncio.timeout(5):
        await seen.wait()
    watcher.cancel()
    await asyncio.gather(watcher, return_exceptions=True)
