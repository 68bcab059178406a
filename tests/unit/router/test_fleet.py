"""States of workers, by a clock that the test moves."""

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st
from warmfleet_proto import router_pb2 as rpb
from warmfleet_proto import worker_pb2 as pb
from warmfleet_proto.errors import Corrupt, Rejected
from warmfleet_proto.hashing import digest_bytes
from warmfleet_proto.work import Work
from warmfleet_router.core import RouterCore
from warmfleet_router.index import seats
from warmfleet_router.index.cursor import WatchAgain

from tests.unit.router.fleet_of import BLOCK, FakeWorker, ask, fleet_of, hashes_of, keys_of, tokens

PROMPT = tokens((1, 64))
DROPPED, OK, IGNORE = rpb.FinishRequest.DROPPED, rpb.FinishRequest.OK, rpb.FinishRequest.IGNORE


def states(core: RouterCore, now: float) -> list[str]:
    return [view.state for view in core.workers(now)]


def end(core: RouterCore, worker: FakeWorker, outcome: int, now: float, times: int = 1) -> None:
    """Requests that only this worker could take, and how they end."""
    others = [view.worker for view in core.workers(now) if view.worker != worker.name]
    for _ in range(times):
        placement = core.route(ask(PROMPT, exclude=others), now)
        assert placement.worker == worker.name
        core.finish(rpb.FinishRequest(booking=placement.booking, outcome=outcome), now)


def test_joining_until_it_has_told_who_it_is_and_what_it_does() -> None:
    core, _ = fleet_of(0)
    worker = FakeWorker(core, "w")
    core.roster.add(worker.address)
    assert states(core, 0.0) == ["joining"]
    with pytest.raises(Rejected, match="no worker has joined"):
        core.route(ask(PROMPT), 0.0)
    with pytest.raises(Corrupt):
        worker.report(0.0)
    worker.join(0.0)
    assert states(core, 0.0) == ["healthy"]
    assert core.route(ask(PROMPT), 0.0).worker == "w"


def test_silence_makes_stuck_and_a_message_mends_it() -> None:
    core, workers = fleet_of(3)
    for now in (0.25, 0.5, 0.75, 1.0, 1.25):
        for worker in workers[1:]:
            worker.report(now)
        core.tick(now)
    assert states(core, 1.25) == ["stuck", "healthy", "healthy"]
    assert {core.route(ask(PROMPT), 1.25).worker for _ in range(8)} <= {"w1", "w2"}
    workers[0].report(1.3)
    assert states(core, 1.3) == ["healthy"] * 3


def test_our_own_stall_is_not_held_against_the_workers() -> None:
    core, _ = fleet_of(2)
    core.tick(0.1)
    core.tick(5.0)
    assert states(core, 5.0) == ["healthy", "healthy"]
    for i in range(1, 12):
        core.tick(5.0 + 0.1 * i)
    assert states(core, 6.1) == ["stuck", "stuck"]


def test_broken_stream_is_lost_at_once() -> None:
    core, workers = fleet_of(2)
    core.roster.broken(workers[0].address, 0.1)
    assert states(core, 0.1) == ["lost", "healthy"]
    assert {core.route(ask(PROMPT), 0.1).worker for _ in range(4)} == {"w1"}
    core.roster.broken(workers[1].address, 0.2)
    with pytest.raises(Rejected):
        core.route(ask(PROMPT), 0.2)


def test_draining_takes_nothing_new() -> None:
    core, workers = fleet_of(2)
    workers[0].report(0.1, draining=True)
    assert states(core, 0.1) == ["draining", "healthy"]
    assert {core.route(ask(PROMPT), 0.1).worker for _ in range(4)} == {"w1"}


def test_five_dropped_in_a_row_eject_for_longer_each_time() -> None:
    core, workers = fleet_of(4)
    end(core, workers[0], DROPPED, 0.1, times=4)
    end(core, workers[0], OK, 0.1)
    end(core, workers[0], DROPPED, 0.1, times=4)
    end(core, workers[0], IGNORE, 0.1)
    assert states(core, 0.1)[0] == "healthy"
    now = 0.1
    for seconds in (5.0, 10.0, 15.0):
        end(core, workers[0], DROPPED, now, times=5 if seconds > 5 else 1)
        assert states(core, now)[0] == "ejected"
        assert states(core, now + seconds - 0.1)[0] == "ejected"
        now += seconds + 0.1
        for worker in workers:
            worker.report(now)
        core.tick(now)
        assert states(core, now)[0] == "healthy"
    assert core.workers(now)[0].ejections == 3


def test_at_most_half_of_the_fleet_is_ejected() -> None:
    core, workers = fleet_of(4)
    for worker in workers[:3]:
        end(core, worker, DROPPED, 0.1, times=5)
    assert states(core, 0.1) == ["ejected", "ejected", "healthy", "healthy"]
    alone, (only,) = fleet_of(1)
    end(alone, only, DROPPED, 0.1, times=20)
    assert states(alone, 0.1) == ["healthy"]


def test_endings_of_the_incarnation_before_say_nothing() -> None:
    core, workers = fleet_of(4)
    old = [core.route(ask(PROMPT, exclude=["w1", "w2", "w3"]), 0.1).booking for _ in range(9)]
    for booking in old[:4]:
        core.finish(rpb.FinishRequest(booking=booking, outcome=DROPPED), 0.1)
    workers[0].restart(0.2)
    for booking in old[4:]:
        core.finish(rpb.FinishRequest(booking=booking, outcome=DROPPED), 0.2)
    end(core, workers[0], DROPPED, 0.3, times=4)
    assert states(core, 0.3)[0] == "healthy"


def test_a_new_epoch_ends_an_ejection() -> None:
    core, workers = fleet_of(4)
    end(core, workers[0], DROPPED, 0.1, times=5)
    assert states(core, 0.1)[0] == "ejected"
    workers[0].restart(0.2)
    assert states(core, 0.2)[0] == "healthy"


def test_the_entries_of_an_old_epoch_are_unusable_with_the_first_status_of_the_new() -> None:
    core, (worker,) = fleet_of(1)
    worker.store(PROMPT, 0.0)
    core.roster.broken(worker.address, 0.1)
    worker.epoch += 1
    core.roster.joined(worker.address, worker._status(), 0.2)
    assert core.workers(0.2)[0].held_blocks == 0


def test_an_incarnation_that_comes_back_is_heard_from_the_beginning() -> None:
    """Two of them are there in turn while one replaces the other behind a name."""
    core, (worker,) = fleet_of(1)
    worker.store(PROMPT, 0.0)
    for epoch in (2, 1):
        core.roster.broken(worker.address, 0.1)
        worker.epoch = epoch
        core.roster.joined(worker.address, worker._status(), 0.2)
        assert core.roster.cursor(worker.address).position() == WatchAgain(0, 0)
    batch = pb.KvBatch(seq=worker.seq, digest=digest_bytes(worker.digest))
    assert worker.say(pb.WatchKvResponse(epoch=1, batch=batch), 0.3) == [WatchAgain(0, 0)]
    assert not core.roster.complete(worker.address)


def test_panic_uses_whoever_can_be_reached() -> None:
    core, workers = fleet_of(4)
    for now in (0.5, 1.0, 1.5):
        workers[0].report(now)
        core.tick(now - 0.25)
        core.tick(now)
    core.roster.broken(workers[3].address, 1.5)
    assert states(core, 1.5) == ["healthy", "stuck", "stuck", "lost"]
    placed = {core.route(ask(tokens((i, 64))), 1.5).worker for i in range(30)}
    assert placed == {"w0", "w1", "w2"}
    assert core.counters.panic == 30
    assert core.totals(1.5).panic


def test_slow_start_ramps_a_newcomer() -> None:
    core, _ = fleet_of(2)
    newcomer = FakeWorker(core, "new")
    newcomer.join(0.0)
    weights = [core.roster.fleet.workers[newcomer.address].weight(t) for t in (0.0, 5.0, 10.0, 99.0)]
    assert weights == [0.1, 0.5, 1.0, 1.0]
    placed = [core.route(ask(tokens((i * 100, 64))), 0.1).worker for i in range(8)]
    assert "new" not in placed
    late = [core.route(ask(tokens((i * 100, 64))), 10.1).worker for i in range(8)]
    assert "new" in late


def test_a_fleet_just_born_spares_nobody() -> None:
    core, _ = fleet_of(1, warm=False)
    for i in range(1, 4):
        FakeWorker(core, f"w{i}").join(0.3 * i)
    assert [w.weight(1.0) for w in core.roster.fleet.workers.values()] == [1.0] * 4
    assert {core.route(ask(tokens((i * 100, 64))), 1.0).worker for i in range(4)} == {"w0", "w1", "w2", "w3"}
    later = FakeWorker(core, "later")
    later.join(10.0)
    assert core.roster.fleet.workers[later.address].weight(10.0) == 0.1


def test_a_name_belongs_to_one_connected_worker() -> None:
    core, _ = fleet_of(2)
    thief = FakeWorker(core, "w0")
    core.roster.add("elsewhere:1")
    status = thief._status()
    with pytest.raises(Rejected, match="known at w0:1"):
        core.roster.joined("elsewhere:1", status, 0.1)
    core.roster.broken("w0:1", 0.2)
    core.roster.joined("elsewhere:1", status, 0.2)
    assert [v.address for v in core.workers(0.2) if v.worker == "w0"] == ["elsewhere:1"]


@pytest.mark.parametrize(
    "status",
    [
        pb.StatusResponse(),
        pb.StatusResponse(worker="w", model="m", block_size=0, epoch=1),
        pb.StatusResponse(worker="w" * 200, model="m", block_size=16, epoch=1),
        pb.StatusResponse(worker="w", model="m", block_size=16, epoch=0),
        pb.StatusResponse(worker="w", model="m", block_size=16, epoch=1, model_fingerprint=bytes(65)),
    ],
)
def test_a_nonsense_status_is_refused(status: pb.StatusResponse) -> None:
    core, _ = fleet_of(0)
    core.roster.add("a:1")
    with pytest.raises(Corrupt):
        core.roster.joined("a:1", status, 0.0)
    assert states(core, 0.0) == ["joining"]


def test_removal_and_a_change_of_model_leave_nothing_behind() -> None:
    core, workers = fleet_of(2)
    workers[0].store(PROMPT, 0.0)
    booking = core.route(ask(PROMPT), 0.1).booking
    core.roster.remove(workers[0].address, 0.1)
    assert core.explain(ask(PROMPT), 0.1).chosen.available_tokens == 0
    assert core.finish(rpb.FinishRequest(booking=booking, outcome=DROPPED), 0.1).known
    core.route(ask(PROMPT), 0.1)
    workers[1].status = {"model": "other", "model_fingerprint": b"g"}
    workers[1].restart(0.2)
    assert list(core.roster.models) == ["other"]
    assert core.route(ask(PROMPT, model="other"), 0.3).expected_tokens == 0


def test_hit_rates_of_the_last_minute_and_since_start_across_epochs() -> None:
    core, (worker,) = fleet_of(1)
    worker.report(1.0, prompt_tokens_total=100, cached_tokens_total=10)
    worker.report(90.0, prompt_tokens_total=200, cached_tokens_total=90)
    view = core.workers(100.0)[0]
    assert (view.hit_minute, view.hit_total) == ((80, 100), (90, 200))
    worker.restart(101.0)
    worker.report(102.0, prompt_tokens_total=50, cached_tokens_total=5)
    view = core.workers(103.0)[0]
    assert (view.hit_minute, view.hit_total) == ((85, 150), (95, 250))


def test_what_a_worker_did_before_this_router_came_is_not_of_the_last_minute() -> None:
    core, _ = fleet_of(0)
    worker = FakeWorker(core, "w")
    worker.join(0.0)
    worker.report(1.0, prompt_tokens_total=1000, cached_tokens_total=900)
    assert core.workers(2.0)[0].hit_minute == (0, 0)
    worker.report(3.0, prompt_tokens_total=1100, cached_tokens_total=910)
    view = core.workers(4.0)[0]
    assert (view.hit_minute, view.hit_total) == ((10, 100), (910, 1100))


@pytest.mark.parametrize("nonsense", [float("nan"), float("inf"), -1.0, 1e300])
def test_a_worker_that_reports_nonsense_spoils_no_price(nonsense: float) -> None:
    core, (liar, honest) = fleet_of(2)
    work = pb.Work(decode_steps=10, decode_sequences=40, decode_context=1000)
    more = pb.Work(decode_steps=20, decode_sequences=80, decode_context=2000)
    for worker in (liar, honest):
        worker.report(0.5, running=4, context_tokens=100, work=work, step_seconds_total=1.0)
    for field in ("step_seconds_total", "step_age_s"):
        with pytest.raises(Corrupt, match=field):
            liar.report(0.6, **{"running": 4, "work": more, field: nonsense})
    assert core.explain(ask(PROMPT), 0.7).chosen.price_s < 10.0


@given(st.lists(st.lists(st.sampled_from([0, 1, 7, 2**32, 2**64 - 1]), min_size=6, max_size=6), max_size=12))
def test_no_work_that_a_worker_tells_spoils_a_price(told: list[list[int]]) -> None:
    core, (liar, _) = fleet_of(2)
    for n, sums in enumerate(told):
        seconds = 1e9 * n / len(told)
        liar.report(
            0.1 * n,
            running=4,
            work=pb.Work(**dict(zip(Work._fields, sums, strict=True))),
            step_seconds_total=seconds,
        )
    priced = core.explain(ask(PROMPT), 2.0)
    assert all(0.0 <= candidate.price_s < inf for candidate in priced.candidates)


def test_a_long_request_finds_the_one_worker_that_takes_it() -> None:
    """None of the candidates that the index names, by overlap or load, has the context."""
    core, workers = fleet_of(20)
    workers[19].status["max_context"] = 300_000
    workers[19].restart(0.0)
    workers[19].report(0.0, running=50)
    chosen = core.route(ask(tokens((1, 5)), max_tokens=200_000), 1.0)
    assert chosen.worker == "w19"


def test_models_that_nobody_serves_any_more_are_forgotten() -> None:
    core, (worker,) = fleet_of(1)
    for i in range(50):
        worker.status["model_fingerprint"] = bytes([i]) * 32
        worker.restart(float(i))
        while not core.roster.sweep(1024):
            pass
    assert len(core.roster.groups) == 1


def test_the_tiers_of_events_reach_the_answer_of_a_lookup() -> None:
    core, (worker, other) = fleet_of(2)
    prompt = tokens((0, 8 * BLOCK))
    blocks = hashes_of(prompt)
    worker.store(prompt, 1.0)
    worker.store(prompt, 1.0, tier=pb.HOST)
    worker.store(prompt, 1.0, tier=pb.DISK)
    worker.remove(blocks[3:], 1.0)  # written back, and gone from the device
    worker.remove(blocks[6:], 1.0, tier=pb.HOST)
    other.store(prompt[: 4 * BLOCK * 4], 1.0, tier=pb.HOST)
    (group,) = core.roster.groups.values()
    assert group.index.leading(keys_of(prompt), group.loads) == ({0: 8, 1: 4}, {0: 5, 1: 4})


def test_equal_weights_under_two_names_are_two_models() -> None:
    """They share what is known of their KV; a request goes to who answers to the name that it gives."""
    core, _ = fleet_of(0)
    workers = [FakeWorker(core, f"w{i}", status={"model": f"m{i}"}) for i in range(2)]
    for worker in workers:
        worker.join(-60.0)
        worker.report(0.0)
    core.tick(0.0)
    assert len(core.roster.groups) == 1
    for model, name in (("m0", "w0"), ("m1", "w1")):
        assert {core.route(ask(PROMPT, model=model), 0.0).worker for _ in range(4)} == {name}
    with pytest.raises(Rejected):
        core.route(ask(PROMPT, model="m0", exclude=["w0"]), 0.0)


def test_a_worker_beyond_what_the_index_takes_is_refused_and_spoils_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(seats, "MAX_WORKERS", 2)
    core, workers = fleet_of(2)
    third = FakeWorker(core, "w2")
    for _ in range(3):  # it is tried again and again
        with pytest.raises(Rejected, match="more than 2 workers"):
            third.join(0.0)
    assert states(core, 0.0) == ["healthy", "healthy", "joining"]
    core.roster.remove(workers[0].address, 0.0)
    while not core.roster.sweep(1024):
        pass
    third.join(0.0)
    assert states(core, 0.0) == ["healthy", "healthy"]
