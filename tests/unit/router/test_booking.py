"""The books: each booking ends once and counts once."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from warmfleet_proto import router_pb2 as rpb
from warmfleet_proto.limits import BOOKING_TTL_S

from tests.unit.router.fleet_of import FakeWorker, ask, fleet_of, tokens

OK = rpb.FinishRequest.OK
PROMPT = tokens((1, 320))


def booked(fake: FakeWorker) -> tuple[int, int]:
    """Sequences that count as load beside the report, and bookings alive."""
    load = fake.core.roster.fleet.workers[fake.address].booked
    return load.slots, load.alive


def test_a_placement_counts_at_once_and_until_the_worker_reports_it() -> None:
    core, (worker,) = fleet_of(1)
    placement = core.route(ask(PROMPT, choices=3), 0.0)
    assert booked(worker) == (3, 1)
    worker.report(0.1, running=3, bookings=[placement.booking])
    assert booked(worker) == (0, 1)
    assert core.roster.fleet.workers[worker.address].flying == 3
    assert core.finish(rpb.FinishRequest(booking=placement.booking, outcome=OK), 0.2).known
    assert booked(worker) == (0, 0)


def test_the_first_token_ends_the_load_of_a_backend_that_names_no_bookings() -> None:
    core, (worker,) = fleet_of(1)
    placement = core.route(ask(PROMPT), 0.0)
    core.progress(rpb.ProgressRequest(booking=placement.booking), 0.1)
    assert booked(worker) == (0, 1)


def test_a_repeated_first_token_teaches_once() -> None:
    core, _ = fleet_of(1)
    placement = core.route(ask(PROMPT), 0.0)
    for _ in range(2):
        report = rpb.ProgressRequest(booking=placement.booking, cached_tokens=16, prefill_s=0.1, ttft_s=0.1)
        core.progress(report, 0.1)
    assert (core.counters.progress, core.counters.delivered_tokens) == (1, 16)


def test_a_worker_speaks_for_its_own_bookings_only() -> None:
    core, (first, second) = fleet_of(2, policy="round_robin")
    placement = core.route(ask(PROMPT), 0.0)
    assert placement.worker == first.name
    second.report(0.1, bookings=[placement.booking])
    assert booked(first) == (1, 1)


def test_only_the_first_finish_counts() -> None:
    core, (worker,) = fleet_of(1)
    finish = rpb.FinishRequest(booking=core.route(ask(PROMPT), 0.0).booking, outcome=OK)
    assert core.finish(finish, 0.1).known
    assert not core.finish(finish, 0.2).known
    assert (core.counters.finished_ok, core.counters.finished_unknown) == (1, 1)
    assert booked(worker) == (0, 0)


def test_a_silent_gateway_loses_its_bookings_and_a_beating_one_keeps_them() -> None:
    core, (worker,) = fleet_of(1)
    gone = core.route(ask(PROMPT, gateway_id="silent"), 0.0)
    core.route(ask(PROMPT, gateway_id="beating"), 0.0)
    for i in range(1, 7):
        assert core.heartbeat(rpb.HeartbeatRequest(gateway_id="beating"), 2.0 * i).bookings == 1
        core.tick(2.0 * i)
    assert booked(worker) == (1, 1)
    assert core.counters.expired == 1
    assert not core.finish(rpb.FinishRequest(booking=gone.booking, outcome=OK), 13.0).known
    assert [p.ending for p in core.placements()] == ["", "expired"]


def test_a_heartbeat_ends_what_the_gateway_no_longer_holds() -> None:
    """A Finish, or the answer to a Route, that never arrived."""
    core, (worker,) = fleet_of(1)
    held = core.route(ask(PROMPT), 0.0).booking
    core.route(ask(PROMPT), 0.0)  # its answer is lost on the way
    core.route(ask(PROMPT, gateway_id="other"), 0.0)
    young = core.route(ask(PROMPT), 7.0).booking
    beat = rpb.HeartbeatRequest(gateway_id="g", live=rpb.LiveBookings(bookings=[held]))
    assert core.heartbeat(beat, 8.0).bookings == 2
    assert booked(worker)[1] == 3
    assert core.counters.expired == 1
    for booking in (held, young):
        assert core.finish(rpb.FinishRequest(booking=booking, outcome=OK), 9.0).known


def test_a_gateway_is_alive_as_long_as_it_says_anything() -> None:
    core, _ = fleet_of(1)
    early = core.route(ask(PROMPT), 0.0)
    core.progress(rpb.ProgressRequest(booking=early.booking), 8.0)
    core.tick(8.0 + BOOKING_TTL_S)
    assert core.finish(rpb.FinishRequest(booking=early.booking, outcome=OK), 18.0).known


def test_what_was_answered_counts_as_held_until_its_events_should_have_come() -> None:
    """They travel on another stream than the answer: the next turn can be here first."""
    core, (worker,) = fleet_of(1)
    group = next(iter(core.roster.groups.values()))
    for outcome, expected in ((OK, True), (rpb.FinishRequest.IGNORE, False)):
        placed = core.route(ask(PROMPT), 0.0)
        core.finish(rpb.FinishRequest(booking=placed.booking, outcome=outcome), 0.1)
        assert (core.explain(ask(PROMPT), 0.2).chosen.expected_tokens > 0) is expected
        worker.report(1.2)
        core.tick(1.2)
        assert len(group.prefixes) == 0
    placed = core.route(ask(PROMPT), 2.0)
    core.finish(rpb.FinishRequest(booking=placed.booking, outcome=OK), 2.1)
    worker.restart(2.2)
    assert len(group.prefixes) == 0


def test_a_new_epoch_owes_nothing_for_the_old_one() -> None:
    core, (worker,) = fleet_of(1)
    placement = core.route(ask(PROMPT), 0.0)
    worker.restart(1.0)
    assert booked(worker) == (0, 1)
    assert core.explain(ask(PROMPT), 1.0).chosen.expected_tokens == 0
    for _ in range(5):
        assert core.finish(rpb.FinishRequest(booking=placement.booking, outcome=OK), 1.0) is not None
    assert booked(worker) == (0, 0)


def test_a_worker_does_not_look_busy_with_what_has_ended_since_its_report() -> None:
    """The next turn of a conversation comes at once, before the next report."""
    core, (worker,) = fleet_of(1)
    known = core.roster.fleet.workers[worker.address]
    first, second = (core.route(ask(PROMPT), 0.0).booking for _ in range(2))
    worker.report(0.1, running=2, context_tokens=640, bookings=[first, second])
    for booking in (first, second):
        core.progress(rpb.ProgressRequest(booking=booking), 0.1)
    crowd_s = known.crowd_s
    _, sequence, token = known.rates.step.coefficients
    assert crowd_s == pytest.approx((2 * sequence + 640 * token) / 2), "for half of its own decoding"
    core.finish(rpb.FinishRequest(booking=first, outcome=OK), 0.2)
    assert known.flying == 1
    assert known.crowd_s == pytest.approx(crowd_s / 2)
    worker.report(0.3, running=2)
    assert known.flying == 2, "the worker has the last word"
    worker.restart(1.0)
    worker.report(1.0, running=1)
    core.finish(rpb.FinishRequest(booking=second, outcome=OK), 1.1)
    assert known.flying == 1, "its new incarnation runs something else"


def test_the_reported_queue_takes_what_its_prompts_do_and_not_what_the_mean_one_does() -> None:
    """Where attention weighs, a long prompt costs more a token than the short ones seen before."""
    core, (worker,) = fleet_of(1)
    rates = core.roster.fleet.workers[worker.address].rates
    rates.prefill.coefficients = [0.0, 1e-4, 1e-7]
    long = tokens((1, 8000))
    placement = core.route(ask(long), 0.0)
    predicted = sum(t.seconds for t in placement.terms if t.name == "prefill")
    worker.report(0.0, waiting=1, prefill_tokens=8000, bookings=[placement.booking])
    known = core.roster.fleet.workers[worker.address]
    assert known.wait_s(0.0) == pytest.approx(predicted)
    worker.report(0.0, waiting=2, prefill_tokens=8100, bookings=[])
    assert known.wait_s(0.0) == pytest.approx(predicted + rates.queue_s(100)), "another router's"
    core.progress(rpb.ProgressRequest(booking=placement.booking), 0.0)
    worker.report(0.0, waiting=1, prefill_tokens=8000)
    assert known.wait_s(0.0) < 0.5 * predicted


def test_the_second_half_of_a_long_prompt_takes_more_than_the_first() -> None:
    core, (worker,) = fleet_of(1)
    known = core.roster.fleet.workers[worker.address]
    known.rates.prefill.coefficients = [0.0, 1e-4, 1e-7]
    long, short = (core.route(ask(tokens((first, n))), 0.0) for first, n in ((1, 8000), (20_000, 100)))
    worker.report(0.0, waiting=2, prefill_tokens=8100, bookings=[long.booking, short.booking])
    whole = known.wait_s(0.0)
    worker.report(0.0, waiting=2, prefill_tokens=4100)
    assert whole - known.wait_s(0.0) == pytest.approx(known.rates.prefill_s(4000, 0))
    worker.report(0.0, waiting=1, prefill_tokens=50)
    assert known.wait_s(0.0) == pytest.approx(known.rates.prefill_s(50, 50)), "the oldest goes first"


class Books(RuleBasedStateMachine):
    """Random order of everything that can happen to bookings, against plain counting."""

    def __init__(self) -> None:
        super().__init__()
        self.core, self.workers = fleet_of(3, policy="round_robin")
        self.now = 0.0
        self.live: dict[int, str] = {}  # booking -> worker
        self.seen: list[int] = []
        self.loading: set[int] = set()  # not yet in a report
        self.queued: set[int] = set()  # no first token yet
        self.ended = 0

    @rule(choices=st.integers(1, 3))
    def route(self, choices: int) -> None:
        placement = self.core.route(ask(PROMPT, choices=choices), self.now)
        assert placement.booking not in self.seen
        self.seen.append(placement.booking)
        self.live[placement.booking] = placement.worker
        self.loading.add(placement.booking)
        self.queued.add(placement.booking)

    @precondition(lambda self: self.seen)
    @rule(data=st.data())
    def progress(self, data: st.DataObject) -> None:
        booking = data.draw(st.sampled_from(self.seen))
        self.core.progress(rpb.ProgressRequest(booking=booking, prefill_s=0.1, ttft_s=0.1), self.now)
        self.loading.discard(booking)
        self.queued.discard(booking)

    @precondition(lambda self: self.seen)
    @rule(data=st.data(), outcome=st.sampled_from([1, 2, 3]))
    def finish(self, data: st.DataObject, outcome: int) -> None:
        booking = data.draw(st.sampled_from(self.seen))
        known = self.core.finish(rpb.FinishRequest(booking=booking, outcome=outcome), self.now).known
        assert known == (booking in self.live)
        self.ended += known
        self.live.pop(booking, None)
        self.loading.discard(booking)
        self.queued.discard(booking)

    @precondition(lambda self: self.seen)
    @rule(data=st.data())
    def report(self, data: st.DataObject) -> None:
        """Any worker may name any booking, old ones too."""
        named = data.draw(st.lists(st.sampled_from(self.seen), max_size=4))
        worker = data.draw(st.sampled_from(self.workers))
        worker.report(self.now, bookings=named)
        self.loading -= {b for b in named if self.live.get(b) == worker.name}

    @rule(seconds=st.sampled_from([0.1, 1.0, 11.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        for worker in self.workers:
            worker.report(self.now)
        before = self.core.counters.expired
        self.core.tick(self.now)
        if self.core.counters.expired > before:
            self.ended += len(self.live)
            self.live.clear()
            self.loading.clear()
            self.queued.clear()

    @invariant()
    def counts_agree(self) -> None:
        counters = self.core.counters
        ended = counters.finished_ok + counters.finished_ignore + counters.finished_dropped + counters.expired
        assert ended == self.ended
        for fake in self.workers:
            load = self.core.roster.fleet.workers[fake.address].booked
            assert load.alive == sum(name == fake.name for name in self.live.values())
            for sums, ids in ((load.coming, self.loading), (load.ahead.sums, self.queued - self.loading)):
                assert sums.prompts == sum(self.live[b] == fake.name for b in ids)
                assert (sums.tokens > 0) == (sums.pairs > 0) == (sums.prompts > 0)
        marks = sum(len(group.prefixes) for group in self.core.roster.groups.values())
        assert marks or not self.live


TestBooks = Books.TestCase
TestBooks.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
