"""The follower against an engine whose batches are lost, doubled and replayed, and that restarts."""

import itertools
from collections.abc import Iterable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from warmfleet_router.events import vllm
from warmfleet_router.events.follower import (
    BURST,
    MAX_HELD_BATCHES,
    QUARANTINE_S,
    REPLAY_S,
    AskReplay,
    Follower,
    State,
    Told,
)
from warmfleet_router.events.mirror import Mirror
from warmfleet_router.view import Counters

from tests.unit.events.engine import FINGERPRINT, PROMPTS, SIZE, Engine, Index, ours
from tests.unit.events.releases import CLEARED, VLLM

RELEASE = VLLM[-2]


class Side:
    """A follower with its index, and what it asks for."""

    def __init__(self, can_replay: bool = True, rank: int = -1) -> None:
        self.counters = Counters()
        mirror = Mirror(FINGERPRINT, SIZE)
        self.follower = Follower(vllm.Decoder(), mirror, self.counters, can_replay, rank)
        self.index = Index()
        self.asked: int | None = None
        self.now = 0.0

    def take(self, told: Iterable[Told]) -> None:
        for each in told:
            if isinstance(each, AskReplay):
                self.asked = each.after
            else:
                self.index.perform([each])

    def hear(self, engine: Engine, seq: int) -> None:
        self.take(self.follower.receive(seq, engine.log[seq], self.now))

    def replay(self, engine: Engine, kept: int = 10_000) -> None:
        """The engine answers what was asked, as far back as it remembers."""
        asked, self.asked = self.asked, None
        assert asked is not None
        for seq in range(max(asked, len(engine.log) - kept), len(engine.log)):
            self.take(self.follower.replayed(seq, engine.log[seq], self.now))
            if self.asked is not None:  # an answer to something else by now
                return
        self.take(self.follower.replay_ended(self.now))


def busy_engine(steps: int, seed: int = 0) -> Engine:
    engine = Engine(RELEASE, seed)
    for n in range(steps):
        engine.compute(PROMPTS[n % 8])
    return engine


def test_batches_in_order() -> None:
    engine, side = busy_engine(5), Side()
    for seq in range(5):
        side.hear(engine, seq)
    assert side.index.present == engine.present
    assert side.asked is None


def test_what_an_idle_engine_has_said_before_is_asked_for_at_once() -> None:
    engine, side = busy_engine(5), Side()
    side.take(side.follower.begin(side.now))
    assert (side.asked, side.follower.state) == (0, State.REPLAY)
    side.replay(engine)
    assert (side.index.present, side.follower.state) == (engine.present, State.LIVE)
    engine.compute(PROMPTS[6])
    side.hear(engine, 5)
    assert side.index.present == engine.present
    assert (side.counters.kv_gaps, side.counters.kv_new_epochs) == (0, 0)


@pytest.mark.parametrize("kept", [10_000, 15])
@pytest.mark.parametrize("missed", [0, 5, 12])  # of what was said, when the answer was made
def test_what_is_said_while_the_answer_comes_is_applied_once_and_in_order(missed: int, kept: int) -> None:
    """An engine that has forgotten its first batches tells a part. What one batch stored the next ones evict:
    another order would leave something behind."""
    engine, side = Engine(RELEASE), Side()
    for before, prompt in zip([[], *PROMPTS], PROMPTS, strict=False):
        engine.compute(prompt)
        for block in ours(before):
            engine.evict(block)
    side.take(side.follower.begin(side.now))
    live, answered = iter(range(len(engine.log) - 12, len(engine.log))), len(engine.log) - missed
    for seq in range(max(answered - kept, 0), answered):
        side.take(side.follower.replayed(seq, engine.log[seq], side.now))
        for heard in itertools.islice(live, seq % 2):
            side.hear(engine, heard)
    side.take(side.follower.replay_ended(side.now))
    for heard in live:
        side.hear(engine, heard)
    assert (side.follower.next, side.index.present) == (len(engine.log), engine.present)
    assert (side.counters.kv_gaps, side.counters.kv_new_epochs) == (0, 0)


def test_an_engine_that_restarts_before_its_answer_is_asked_again() -> None:
    engine, side = busy_engine(5), Side()
    side.take(side.follower.begin(side.now))
    side.follower.disconnected()
    again = Engine(RELEASE, seed=9)
    for n in (7, 6):
        again.compute(PROMPTS[n])
    side.hear(again, 0)
    side.replay(engine)  # what it had sent before
    assert side.asked == 0
    side.replay(again)
    assert side.index.present == again.present


def test_an_engine_that_restarts_after_its_answer_is_learned_anew() -> None:
    engine, side = busy_engine(5), Side()
    side.take(side.follower.begin(side.now))
    side.replay(engine)
    side.follower.disconnected()
    again = Engine(RELEASE, seed=9)
    again.compute(PROMPTS[7])
    side.hear(again, 0)
    side.replay(again)
    if side.asked is not None:
        side.replay(again)
    assert side.index.present == again.present


def test_an_answer_that_does_not_come_holds_nobody_up() -> None:
    engine, side = busy_engine(2), Side()
    side.take(side.follower.begin(side.now))
    side.hear(engine, 0)
    side.now += REPLAY_S + 1
    side.take(side.follower.tick(side.now))
    assert side.follower.state is State.LIVE
    side.hear(engine, 1)
    assert side.index.present == engine.present


def test_a_first_number_above_zero_is_a_gap() -> None:
    engine, side = busy_engine(5), Side()
    side.hear(engine, 3)
    assert (side.asked, side.index.present) == (0, set())
    side.hear(engine, 4)
    side.replay(engine)
    assert side.index.present == engine.present
    assert side.counters.kv_gaps == 1


def test_what_a_replay_brought_already_is_no_restart() -> None:
    engine, side = busy_engine(6), Side()
    side.hear(engine, 2)
    side.replay(engine)
    for seq in (3, 4, 5):
        side.hear(engine, seq)
    assert side.index.present == engine.present
    assert (side.counters.kv_new_epochs, side.counters.kv_duplicates) == (0, 3)


def test_without_a_replay_socket_it_relearns() -> None:
    engine, side = busy_engine(8), Side(can_replay=False)
    side.hear(engine, 0)
    side.hear(engine, 7)
    assert side.index.present == set(ours(PROMPTS[7]))


def test_a_replay_that_begins_too_late_is_learned_from_there() -> None:
    engine, side = busy_engine(8), Side()
    side.hear(engine, 0)
    side.hear(engine, 7)
    side.replay(engine, kept=2)
    assert side.index.present == set(ours(PROMPTS[6])) | set(ours(PROMPTS[7]))


def test_a_replay_that_never_comes_is_given_up() -> None:
    engine, side = busy_engine(8), Side()
    side.hear(engine, 5)
    side.now += REPLAY_S / 2
    side.take(side.follower.tick(side.now))
    assert side.follower.state is State.REPLAY
    side.now += REPLAY_S
    side.take(side.follower.tick(side.now))
    assert side.follower.state is State.LIVE
    assert side.index.present == set(ours(PROMPTS[5]))


def test_a_number_that_goes_back_is_a_restart() -> None:
    engine, side = busy_engine(5), Side()
    for seq in range(5):
        side.hear(engine, seq)
    again = Engine(RELEASE, seed=9)
    again.compute(PROMPTS[7])
    side.hear(again, 0)
    assert side.index.present == again.present == set(ours(PROMPTS[7]))
    assert side.counters.kv_new_epochs == 1


@pytest.mark.parametrize("can_replay", [True, False])
def test_a_restart_that_was_slept_through_is_found_out(can_replay: bool) -> None:
    engine, side = busy_engine(3), Side(can_replay)
    for seq in range(3):
        side.hear(engine, seq)
    side.follower.disconnected()
    again = Engine(RELEASE, seed=9)
    for n in (7, 6, 5, 4):
        again.compute(PROMPTS[n])
    side.hear(again, 3)  # would follow
    if can_replay:
        side.replay(again)
        side.replay(again)
        assert side.index.present == again.present
    else:
        assert side.index.present == set(ours(PROMPTS[4]))


def test_a_broken_connection_to_the_same_engine_costs_nothing() -> None:
    engine, side = busy_engine(4), Side()
    for seq in range(3):
        side.hear(engine, seq)
    side.follower.disconnected()
    side.hear(engine, 3)
    side.replay(engine)
    assert side.index.present == engine.present
    assert side.counters.kv_new_epochs == 0


@pytest.mark.parametrize("seq", [-(1 << 63), -2, -1, 1 << 62, (1 << 63) - 1])
def test_numbers_that_are_none_are_quarantined(seq: int) -> None:
    engine, side = busy_engine(2), Side()
    side.hear(engine, 0)
    side.take(side.follower.receive(seq, engine.log[1], side.now))
    assert (side.follower.state, side.index.present) == (State.QUARANTINE, set())


def test_nonsense_is_quarantined_and_forgiven() -> None:
    engine, side = busy_engine(3), Side()
    side.hear(engine, 0)
    side.take(side.follower.receive(1, b"\xc1", side.now))
    assert (side.follower.state, side.index.present) == (State.QUARANTINE, set())
    assert side.follower.why
    side.hear(engine, 2)
    side.now = QUARANTINE_S + 1
    side.take(side.follower.tick(side.now))
    side.hear(engine, 2)
    side.replay(engine)
    assert side.index.present == engine.present


@pytest.mark.parametrize(("claimed", "state"), [(1, State.LIVE), (None, State.LIVE), (2, State.QUARANTINE)])
def test_who_speaks_in_the_place_of_another_is_quarantined(claimed: int | None, state: State) -> None:
    side = Side(rank=1)
    side.take(side.follower.receive(0, RELEASE.batch(CLEARED, rank=claimed), 0.0))
    assert side.follower.state is state
    assert (claimed == 2) == ("rank 2 speaks in the place of rank 1" in side.follower.why)


def test_a_flood_is_quarantined() -> None:
    engine, side = busy_engine(1), Side(can_replay=False)
    for seq in range(BURST + 1):
        side.take(side.follower.receive(seq, engine.log[0], side.now))
    assert side.follower.state is State.QUARANTINE


def test_what_waits_for_a_replay_is_bounded() -> None:
    engine, side = busy_engine(1), Side()
    for seq in range(5, MAX_HELD_BATCHES + 10):
        side.take(side.follower.receive(seq, engine.log[0], side.now))
    assert side.counters.kv_held_dropped == 5


class Following(RuleBasedStateMachine):
    """At any time the index is a part of what the engine held after the last applied batch."""

    @initialize(can_replay=st.booleans())
    def start(self, can_replay: bool) -> None:
        self.side = Side(can_replay)
        self.engine = Engine(RELEASE)
        self.sent = 0  # batches that left the engine
        self.starts = 0
        self.side.take(self.side.follower.begin(self.side.now))

    @rule(prompt=st.integers(0, 7))
    def compute(self, prompt: int) -> None:
        self.engine.compute(PROMPTS[prompt])

    @rule(at=st.integers(0, 99))
    def evict(self, at: int) -> None:
        present = sorted(self.engine.present)
        if present:
            self.engine.evict(present[at % len(present)])

    @rule()
    def reset(self) -> None:
        self.engine.reset()

    @rule(lost=st.booleans())
    def deliver(self, lost: bool) -> None:
        if self.sent < len(self.engine.log):
            self.sent += 1
            if not lost:
                self.side.hear(self.engine, self.sent - 1)

    @rule(kept=st.sampled_from([0, 2, 10_000]))
    def answer(self, kept: int) -> None:
        if self.side.asked is not None:
            self.side.replay(self.engine, kept)

    @rule()
    def reconnect(self) -> None:
        self.side.follower.disconnected()

    @rule()
    def restart(self) -> None:
        self.starts += 1
        self.engine = Engine(RELEASE, seed=self.starts)
        self.sent = 0
        self.side.follower.disconnected()

    @rule(seconds=st.sampled_from([0.1, REPLAY_S + 1]))
    def wait(self, seconds: float) -> None:
        self.side.now += seconds
        self.side.take(self.side.follower.tick(self.side.now))

    @rule()
    def settle(self) -> None:
        """With everything delivered and every replay answered, the index is the truth."""
        self.engine.reset()
        while self.sent < len(self.engine.log):
            self.deliver(lost=False)
        while self.side.asked is not None:
            self.side.replay(self.engine)
        self.wait(REPLAY_S + 1)
        for prompt in PROMPTS[:3]:
            self.engine.compute(prompt)
            self.deliver(lost=False)
        if self.side.follower.state is State.LIVE:
            assert self.side.index.present == self.engine.present

    @invariant()
    def a_part_of_the_truth(self) -> None:
        follower = self.side.follower
        assert follower.state is not State.QUARANTINE
        if follower.state is not State.LIVE or follower._unsure:
            return
        truth = self.engine.truths[follower.next - 1] if follower.next else set()
        assert self.side.index.present <= truth


TestFollowing = Following.TestCase
TestFollowing.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
