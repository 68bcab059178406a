"""What a caller may not ask, and what it is told then."""

import pytest
from warmfleet_proto import router_pb2 as rpb
from warmfleet_proto.errors import BadRequest, Rejected

from tests.unit.router.fleet_of import ask, fleet_of, keys_of, tokens

PROMPT = tokens((1, 100))


@pytest.mark.parametrize(
    ("fields", "field", "message"),
    [
        ({}, "token_ids", "one of token_ids and keys"),
        ({"token_ids": b""}, "token_ids", "the prompt is empty"),
        ({"token_ids": b"12345"}, "token_ids", "5 bytes, not a multiple of 4"),
        ({"token_ids": PROMPT, "prompt_tokens": 99}, "prompt_tokens", "says 99, not 100"),
        ({"keys": b"1234567", "prompt_tokens": 20}, "keys", "7 bytes, not a multiple of 8"),
        ({"keys": b"12345678"}, "prompt_tokens", "required with keys"),
        ({"keys": bytes(88), "prompt_tokens": 10}, "keys", "11 keys are more than 10"),
        ({"keys": b"", "prompt_tokens": (2 << 20) + 1}, "prompt_tokens", "more than 2097152"),
        ({"token_ids": PROMPT, "choices": 129}, "choices", "more than 128"),
        ({"token_ids": PROMPT, "salt": bytes(65)}, "salt", "more than 64"),
        ({"token_ids": PROMPT, "request_id": "x" * 129}, "request_id", "more than 128"),
        ({"token_ids": PROMPT, "exclude": ["w"] * 65537}, "exclude", "more than 65536"),
        ({"token_ids": PROMPT, "max_tokens": 100_000}, "prompt", "context of 100000 tokens"),
        ({"token_ids": PROMPT, "max_tokens": 2**32 - 1}, "prompt", "context of 100000 tokens"),
    ],
)
def test_bad_requests_name_the_field_and_the_limit(
    fields: dict[str, object], field: str, message: str
) -> None:
    core, _ = fleet_of(1)
    with pytest.raises(BadRequest, match=message) as caught:
        core.route(ask(**fields), 0.0)
    assert caught.value.field == field
    assert core.counters.bad_requests == 1
    assert core.totals(0.0).bookings == 0


def test_unknown_model_is_not_found() -> None:
    core, _ = fleet_of(1)
    with pytest.raises(BadRequest, match="'x' is not served") as caught:
        core.route(ask(PROMPT, model="x"), 0.0)
    assert (caught.value.status, caught.value.field) == (404, "model")


def test_long_prompts_go_where_they_fit() -> None:
    core, workers = fleet_of(3)
    workers[1].status = {"max_context": 200_000}
    workers[1].restart(-60.0)
    workers[1].report(0.0)
    core.tick(0.0)
    assert core.route(ask(PROMPT, max_tokens=150_000), 0.0).worker == "w1"
    with pytest.raises(Rejected):
        core.route(ask(PROMPT, max_tokens=150_000, exclude=["w1"]), 0.0)


def test_workers_that_were_tried_are_not_tried_again() -> None:
    core, workers = fleet_of(3)
    workers[0].store(PROMPT, 0.0)
    assert core.route(ask(PROMPT, exclude=["w0", "w1"]), 0.0).worker == "w2"
    with pytest.raises(Rejected):
        core.route(ask(PROMPT, exclude=["w0", "w1", "w2"]), 0.0)


def test_token_ids_and_keys_find_the_same_and_salts_keep_tenants_apart() -> None:
    core, workers = fleet_of(2)
    workers[1].store(PROMPT, 0.0)
    by_ids = core.explain(ask(PROMPT), 0.1).chosen
    by_keys = core.explain(ask(keys=keys_of(PROMPT), prompt_tokens=100), 0.1).chosen
    assert (by_ids.worker, by_ids.expected_tokens) == (by_keys.worker, by_keys.expected_tokens) == ("w1", 96)
    assert core.explain(ask(PROMPT, salt=b"other"), 0.1).chosen.available_tokens == 0


def test_explain_says_what_route_does_and_changes_nothing() -> None:
    core, workers = fleet_of(4)
    workers[3].store(tokens((1, 50)), 0.0)
    for i in range(10):
        request = ask(tokens((i % 3, 100)))
        before = (core.totals(0.1), core.placements())
        explained = core.explain(request, 0.1)
        assert (core.totals(0.1), core.placements()) == before
        placed = core.route(request, 0.1)
        placed.booking = 0
        assert explained.chosen == placed
        assert {c.worker for c in explained.candidates} == {"w0", "w1", "w2", "w3"}
        assert [c.price_s for c in explained.candidates] == sorted(c.price_s for c in explained.candidates)


def test_one_name_served_by_two_kinds_of_worker() -> None:
    core, workers = fleet_of(3)
    workers[2].status = {"model_fingerprint": b"another build"}
    workers[2].restart(-60.0)
    workers[2].report(0.0)
    core.tick(0.0)
    assert len(core.roster.groups) == 2
    workers[1].store(PROMPT, 0.0)
    assert core.route(ask(PROMPT), 0.0).worker == "w1"
    placed = {core.route(ask(tokens((i, 10))), 0.0).worker for i in range(30)}
    assert placed == {"w0", "w1", "w2"}


def test_history_keeps_the_last_hundred_with_what_was_delivered() -> None:
    core, workers = fleet_of(2)
    workers[0].store(PROMPT, 0.0)
    for _ in range(120):
        placement = core.route(ask(PROMPT, request_id="last", tenant="t"), 0.1)
    core.progress(rpb.ProgressRequest(booking=placement.booking, cached_tokens=48, ttft_s=0.5), 0.2)
    core.finish(rpb.FinishRequest(booking=placement.booking, outcome=rpb.FinishRequest.OK), 0.3)
    records = core.placements()
    assert len(records) == 100
    latest = records[0]
    assert (latest.request_id, latest.tenant, latest.ending) == ("last", "t", "ok")
    assert (latest.available_tokens, latest.expected_tokens, latest.delivered_tokens, latest.ttft_s) == (
        96,
        96,
        48,
        0.5,
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, 1e300])
def test_nonsense_timings_teach_nothing(value: float) -> None:
    core, _ = fleet_of(1)
    before = core.workers(0.0)[0].prefill_s_per_1k_tokens
    placement = core.route(ask(PROMPT), 0.0)
    core.progress(
        rpb.ProgressRequest(
            booking=placement.booking, prefill_s=value, ttft_s=value, queue_s=value, cached_tokens=2**32 - 1
        ),
        0.1,
    )
    core.finish(rpb.FinishRequest(booking=placement.booking, outcome=rpb.FinishRequest.OK, e2e_s=value), 0.1)
    view = core.workers(0.1)[0]
    assert view.prefill_s_per_1k_tokens == before
    assert view.ttft_p50_s is None
    assert core.placements()[0].delivered_tokens == 99


def test_finish_needs_an_outcome() -> None:
    core, _ = fleet_of(1)
    placement = core.route(ask(PROMPT), 0.0)
    with pytest.raises(BadRequest):
        core.finish(rpb.FinishRequest(booking=placement.booking), 0.1)
    assert core.totals(0.1).bookings == 1
