"""Servers that are not ours, as the core sees them: loads without names, cached tokens told with the end."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from warmfleet_proto import router_pb2 as pb
from warmfleet_proto.errors import BadRequest, Corrupt
from warmfleet_router.core import RouterCore
from warmfleet_router.events.batch import Stored
from warmfleet_router.events.mirror import Mirror
from warmfleet_router.fleet.agreement import ENOUGH, Agreement
from warmfleet_router.fleet.worker import State
from warmfleet_router.index.cursor import Store
from warmfleet_router.prices.pricing import COMPLETION_GUESS
from warmfleet_router.routing import Routing

from tests.unit.router.fleet_of import FakeWorker, hashes_of, tokens

PROMPT = tokens((0, 320))


def server(name: str = "s", **status: object) -> tuple[RouterCore, FakeWorker]:
    core = RouterCore(Routing(), 1)
    made = FakeWorker(
        core, name, status={"anonymous_load": True, "silence_s": 5.0, "engine": "vllm"} | status
    )
    core.roster.add(made.address)
    core.roster.joined(made.address, made._status(), 0.0)
    made.report(0.0)
    return core, made


def route(core: RouterCore, now: float = 100.0, prompt: bytes = PROMPT) -> pb.Placement:
    return core.route(pb.RouteRequest(gateway_id="g", model="m", token_ids=prompt, max_tokens=8), now)


def answer(
    core: RouterCore, placed: pb.Placement, cached: int | None, now: float = 100.5, **more: Any
) -> None:
    core.progress(pb.ProgressRequest(booking=placed.booking, ttft_s=0.5, cached_later=True), now)
    told = more if cached is None else {"cached_tokens": cached, "cached_known": True} | more
    core.finish(
        pb.FinishRequest(booking=placed.booking, outcome=pb.FinishRequest.OK, ttft_s=0.5, **told), now
    )


def test_an_answer_that_comes_whole_tells_no_first_token() -> None:
    core, made = server()
    worker = core.roster.fleet.workers[made.address]
    before = worker.rates.prefill_s(1000, 0)
    for n in range(20):
        placed = route(core, 100.0 + 10 * n, tokens((n, 320 + 16 * n)))
        told = {"completion_tokens": 200, "cached_known": True, "e2e_s": 4.0}
        request = pb.FinishRequest(booking=placed.booking, outcome=pb.FinishRequest.OK, **told)  # type: ignore[arg-type]
        core.finish(request, 104.0 + 10 * n)
    (view,) = core.workers(400.0)
    assert (view.ttft_p50_s, view.ttft_error) == (None, None)
    assert worker.rates.measured
    assert worker.rates.prefill_s(1000, 0) < 4 * before, "most of it was decoding"
    assert worker.rates.completion == pytest.approx(200.0)


def test_an_answer_whose_tokens_are_not_known_says_nothing_of_how_long_answers_are() -> None:
    core, made = server()
    answer(core, route(core), None)
    assert core.roster.fleet.workers[made.address].rates.completion == COMPLETION_GUESS


def test_our_own_requests_count_once_and_until_they_end() -> None:
    core, made = server()
    worker = core.roster.fleet.workers[made.address]
    first, second = route(core), route(core)
    assert worker.flying == 2
    core.progress(pb.ProgressRequest(booking=first.booking, cached_later=True), 100.1)
    assert worker.flying == 2
    made.report(100.2, running=2, waiting=1)  # one of them is a stranger's
    assert worker.flying == 3
    assert worker.booked.coming.prompts == 1
    for placed in (first, second):
        core.finish(pb.FinishRequest(booking=placed.booking, outcome=pb.FinishRequest.OK), 100.3)
    assert (worker.flying, worker.booked.coming.prompts) == (1, 0)


def test_a_first_report_forgets_nothing_that_events_told_before_it() -> None:
    core = RouterCore(Routing(), 1)
    made = FakeWorker(core, "s", status={"anonymous_load": True, "engine": "vllm"})
    core.roster.add(made.address)
    core.roster.joined(made.address, made._status(), 0.0)
    core.roster.told(made.address, Store(1, 0, b"".join(hashes_of(PROMPT))))
    made.report(0.0)
    (group,) = core.roster.models["m"]
    assert group.index.held(core.roster.fleet.workers[made.address].slot) == len(hashes_of(PROMPT)) > 0


def test_prompts_that_others_have_waiting_are_taken_to_be_as_long_as_ours() -> None:
    core, made = server()
    other = FakeWorker(core, "t", status={"anonymous_load": True, "silence_s": 5.0})
    core.roster.add(other.address)
    core.roster.joined(other.address, other._status(), 0.0)
    other.report(0.0)
    worker = core.roster.fleet.workers[made.address]
    placed = [route(core), route(core)]
    (group,) = core.roster.models["m"]
    each_s = group.traffic.mean_s
    assert each_s > 0
    ours = [p.worker for p in placed].count("s")
    before = worker.wait_s(100.0)
    made.report(100.0, running=1, waiting=ours)
    assert worker.wait_s(100.0) == pytest.approx(before)
    made.report(100.0, running=1, waiting=ours + 40)
    assert worker.wait_s(100.0) == pytest.approx(before + 40 * each_s)
    assert {route(core, 100.0).worker for _ in range(3)} == {"t"}
    made.report(100.0, running=1, waiting=ours)
    assert worker.wait_s(100.0) == pytest.approx(before)


def line_of(prompts: int) -> tuple[RouterCore, FakeWorker, list[int], float]:
    """A server with as many prompts sent to it at once, their bookings, and the seconds of each."""
    core, made = server()
    made.report(100.0)
    bookings = [route(core, 100.0, tokens((n, 4096))).booking for n in range(prompts)]
    return core, made, bookings, wait_of(core, made, 100.0) / prompts


def wait_of(core: RouterCore, made: FakeWorker, now: float) -> float:
    return core.roster.fleet.workers[made.address].wait_s(now)


def begin(core: RouterCore, booking: int, now: float) -> None:
    """Its first token has come."""
    core.progress(pb.ProgressRequest(booking=booking, cached_later=True), now)


def test_a_prompt_that_is_nearly_computed_is_not_counted_whole() -> None:
    core, made, _, each_s = line_of(3)
    assert each_s > 0.05
    for share in (0.5, 1.0, 1.5, 2.9):
        assert wait_of(core, made, 100.0 + share * each_s) == pytest.approx((3 - share) * each_s)
    assert wait_of(core, made, 100.0 + 4 * each_s) == 0.0
    made.report(100.0 + 0.5 * each_s, running=3)
    assert wait_of(core, made, 100.0 + 0.5 * each_s) == pytest.approx(2.5 * each_s), (
        "a report is no news of it"
    )
    (group,) = core.roster.models["m"]
    assert min(group.loads) < 2.6 * each_s


@pytest.mark.parametrize("took", [0.5, 1.0, 2.5])
def test_the_next_prompt_begins_when_the_one_before_it_is_done(took: float) -> None:
    core, made, bookings, each_s = line_of(3)
    done = 100.0 + took * each_s
    begin(core, bookings[0], done)
    assert wait_of(core, made, done) == pytest.approx(2 * each_s)
    assert wait_of(core, made, done + 0.5 * each_s) == pytest.approx(1.5 * each_s)


def test_one_that_is_answered_out_of_turn_takes_only_itself_off() -> None:
    core, made, bookings, each_s = line_of(3)
    now = 100.0 + 0.5 * each_s
    begin(core, bookings[2], now)
    assert wait_of(core, made, now) == pytest.approx(1.5 * each_s)
    core.finish(pb.FinishRequest(booking=bookings[1], outcome=pb.FinishRequest.IGNORE), now)
    assert wait_of(core, made, now) == pytest.approx(0.5 * each_s)
    core.finish(pb.FinishRequest(booking=bookings[0], outcome=pb.FinishRequest.DROPPED), now)
    assert wait_of(core, made, now) == 0.0


def test_one_that_comes_behind_an_overdue_one_is_counted_whole() -> None:
    core, made, _, each_s = line_of(1)
    late = 100.0 + 5 * each_s
    made.report(late, running=1)
    route(core, late, tokens((7, 4096)))
    assert wait_of(core, made, late) == pytest.approx(each_s)
    assert wait_of(core, made, late + 0.5 * each_s) == pytest.approx(0.5 * each_s)


def test_prompts_that_a_server_says_wait_have_not_been_computed() -> None:
    """However long they were expected to take."""
    core, made, _, each_s = line_of(4)
    late = 100.0 + 10 * each_s
    made.report(late, running=1, waiting=3)
    assert wait_of(core, made, late) == pytest.approx(3 * each_s)
    made.report(late, running=4)
    assert wait_of(core, made, late) == 0.0


def test_what_it_had_cached_is_learned_with_the_end() -> None:
    core, made = server()
    answer(core, route(core), 160)
    (view,) = core.workers(101.0)
    assert view.hit_minute == view.hit_total == (160, 320)
    assert core.placements()[0].delivered_tokens == 160
    assert core.counters.delivered_tokens == 160
    assert core.roster.fleet.workers[made.address].rates.measured


def test_events_reach_the_index() -> None:
    core, made = server()
    core.roster.told(made.address, Store(1, 0, b"".join(hashes_of(PROMPT))))
    assert route(core).expected_tokens == 319


@pytest.mark.parametrize(("found", "left"), [(0, 0), (160, 160), (300, 319)])
def test_what_an_answer_did_not_find_is_not_expected_again(found: int, left: int) -> None:
    """The engine has lost it and told nothing; a block less is no contradiction."""
    core, made = server()
    (group,) = core.roster.models["m"]
    mirror = Mirror(group.fingerprint, group.block_size)
    core.roster.follow(made.address, mirror)
    ids, names = list(memoryview(PROMPT).cast("I")), list(range(320 // group.block_size))
    stored = Stored(1, names, None, ids, group.block_size, "", "", ())
    for instruction in mirror.apply(stored):
        core.roster.told(made.address, instruction)
    placed = route(core)
    assert placed.expected_tokens == 319
    answer(core, placed, found)
    assert route(core, 102.0).expected_tokens == left
    (view,) = core.workers(103.0)
    assert view.held_blocks == -(-left // group.block_size)


def test_an_answer_that_finds_what_was_taken_to_be_lost_brings_it_back() -> None:
    """One request was computed anew whatever was cached: that must not cost all others their blocks."""
    core, made = server()
    (group,) = core.roster.models["m"]
    mirror = Mirror(group.fingerprint, group.block_size)
    core.roster.follow(made.address, mirror)
    ids, names = list(memoryview(PROMPT).cast("I")), list(range(320 // group.block_size))
    for instruction in mirror.apply(Stored(1, names, None, ids, group.block_size, "", "", ())):
        core.roster.told(made.address, instruction)
    answer(core, route(core), 0)
    again = route(core, 102.0)
    assert again.expected_tokens == 0
    answer(core, again, 304, 102.5)
    assert route(core, 103.0).expected_tokens == 319


def test_a_further_name_goes_to_those_that_know_it() -> None:
    core, knows = server("knows", models=["poet"], adapters=["poet"])
    other = FakeWorker(core, "other", status={"anonymous_load": True, "silence_s": 5.0})
    core.roster.add(other.address)
    core.roster.joined(other.address, other._status(), 0.0)
    for now in range(4):
        other.report(100.0 + now)
        asked = pb.RouteRequest(gateway_id="g", model="poet", token_ids=PROMPT, salt=b"poet")
        assert core.route(asked, 100.0 + now).worker == "knows"
    assert {(w.worker, *w.adapters) for w in core.list_workers(pb.ListWorkersRequest(), 0).workers} == {
        ("knows", "poet"),
        ("other",),
    }
    status = knows._status()
    del status.models[:]
    core.roster.joined(knows.address, status, 105.0)
    with pytest.raises(BadRequest, match="poet"):
        core.route(asked, 105.0)


def test_answers_that_contradict_the_events_end_the_trust_in_them() -> None:
    core, made = server()
    store = Store(1, 0, b"".join(hashes_of(PROMPT)))
    core.roster.told(made.address, store)
    for n in range(ENOUGH + 5):
        answer(core, route(core, 100.0 + n), 0, 100.5 + n)
    (view,) = core.workers(200.0)
    assert view.agreement is not None
    assert view.agreement < 0.5
    assert view.confidence is not None  # it is guessed now
    assert core.counters.kv_distrusted == 1
    core.roster.told(made.address, store)  # not listened to any more
    assert view.held_blocks == core.workers(200.0)[0].held_blocks
    made.epoch += 1
    core.roster.joined(made.address, made._status(), 300.0)
    core.roster.told(made.address, store)
    assert core.workers(300.0)[0].confidence is None
    assert core.workers(300.0)[0].held_blocks == 20


def test_answers_that_agree_keep_it() -> None:
    core, made = server()
    core.roster.told(made.address, Store(1, 0, b"".join(hashes_of(PROMPT))))
    for n in range(3 * ENOUGH):
        answer(core, route(core, 100.0 + n), 304, 100.5 + n)
    assert core.workers(200.0)[0].agreement == 1.0


def test_an_answer_to_a_prompt_that_is_known_by_its_text_does_not_contradict_events() -> None:
    """Nor does it take blocks out of the index."""
    core, made = server()
    core.roster.follow(made.address, Mirror(b"f" * 32, 16))
    core.roster.told(made.address, Store(1, 0, b"".join(hashes_of(PROMPT))))
    for n in range(ENOUGH + 5):
        answer(core, route(core, 100.0 + n, tokens((n, 320))), 304, 100.5 + n, keyed_on_text=True)
    answer(core, route(core, 190.0), 0, 190.5, keyed_on_text=True)
    (view,) = core.workers(200.0)
    assert (view.agreement, view.held_blocks, core.counters.kv_distrusted) == (None, 20, 0)


def test_a_silent_server_is_guessed_from_its_answers() -> None:
    core, _ = server(silent=True)
    answer(core, route(core), 0)
    placed = route(core, 102.0)
    assert placed.expected_tokens == 319
    answer(core, placed, 304, 102.5)
    confidence = core.workers(103.0)[0].confidence
    assert confidence is not None
    assert confidence > 0.99


@pytest.mark.parametrize("cached", [1088, 850], ids=["all", "what differs from the guess in its parts"])
def test_a_text_of_fewer_tokens_than_were_guessed_is_not_taken_to_be_evicted(cached: int) -> None:
    core, _ = server(silent=True)
    before = core.workers(100.0)[0].guessed_blocks
    found = 0
    for n in range(30):
        prompt = tokens((n, 1600))
        for at, there in ((100.0 + n, 0), (100.5 + n, cached)):  # tokens of 1,100
            placed = route(core, at, prompt)
            answer(core, placed, there, at + 0.1, keyed_on_text=True, prompt_tokens=1100)
        found += cached * 1600 // 1100
    (view,) = core.workers(140.0)
    assert (view.guessed_blocks, core.counters.delivered_tokens) == (before, pytest.approx(found, rel=0.01))
    assert view.confidence is not None
    assert view.confidence > 0.75


def test_it_may_be_silent_for_longer_than_our_own_workers() -> None:
    core, made = server()
    worker = core.roster.fleet.workers[made.address]
    for now in (4.0, 4.4, 4.8):
        core.tick(now)
    assert worker.state(4.9) is State.HEALTHY
    for now in (5.0, 5.2):
        core.tick(now)
    assert worker.state(5.2) is State.STUCK


@pytest.mark.parametrize("silence_s", [-1.0, float("nan"), float("inf"), 1e9])
def test_a_silence_that_is_none_is_refused(silence_s: float) -> None:
    with pytest.raises(Corrupt):
        server(silence_s=silence_s)


@given(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 10_000)), max_size=60))
def test_agreement_is_a_share(answers: list[tuple[int, int]]) -> None:
    agreement = Agreement()
    for expected, cached in answers:
        agreement.lost(expected, cached, 16)
        assert agreement.rate is None or 0.0 <= agreement.rate <= 1.0
