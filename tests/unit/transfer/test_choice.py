"""Which transport a pair takes: the fastest that it has seen, after each was tried."""

from hypothesis import given
from hypothesis import strategies as st
from warmfleet_worker.transfer.choice import FORGET_S, GUESSES, LEAST_BYTES, Choice

NAMES = tuple(GUESSES)
GB = 1 << 30


def test_on_a_guess_first_then_by_what_was_seen() -> None:
    choice = Choice()
    assert choice.best("a", ["tcp", "shm"], 0.0) == "shm"
    choice.moved("a", "shm", GB, 1.0, 0.0)  # slower than tcp is thought to be
    assert choice.best("a", ["tcp", "shm"], 0.0) == "tcp"
    choice.moved("a", "tcp", GB, 2.0, 1.0)
    assert choice.best("a", ["tcp", "shm"], 1.0) == "shm"
    assert choice.best("b", ["tcp", "shm"], 1.0) == "shm", "another pair is another matter"


def test_what_fails_is_left_for_a_while() -> None:
    choice = Choice()
    choice.failed("a", "cuda", 0.0)
    assert choice.best("a", ["tcp", "cuda"], 1.0) == "tcp"
    assert choice.best("a", ["cuda"], 1.0) == "cuda", "where there is nothing else"
    assert choice.best("a", ["tcp", "cuda"], FORGET_S) == "cuda"
    assert choice.best("a", [], 0.0) is None


def test_small_pulls_say_nothing() -> None:
    choice = Choice()
    choice.moved("a", "shm", LEAST_BYTES - 1, 10.0, 0.0)
    assert choice.best("a", ["tcp", "shm"], 0.0) == "shm"


def test_what_was_seen_long_ago_is_what_is_expected() -> None:
    choice = Choice()
    assert choice.usual("a", "shm") == GUESSES["shm"]
    choice.moved("a", "shm", GB, 10.0, 0.0)
    assert choice.usual("a", "shm") == GB / 10.0
    assert choice.bytes_per_s("a", "shm", 2 * FORGET_S) == GUESSES["shm"], "tried again"


def test_bounded() -> None:
    choice = Choice()
    for n in range(5000):
        choice.failed(str(n), "shm", 0.0)
    assert choice.best("0", ["tcp", "shm"], 0.0) == "shm", "the oldest are forgotten"
    assert choice.best("4999", ["tcp", "shm"], 0.0) == "tcp"


@given(st.lists(st.floats(1e8, 4e11), min_size=len(NAMES), max_size=len(NAMES)))
def test_settles_on_the_fastest_unless_a_guess_hid_it(rates: list[float]) -> None:
    """Every transport that was thought to be faster than what was found has been tried."""
    choice, true = Choice(), dict(zip(NAMES, rates, strict=True))
    for turn in range(len(NAMES) + 1):
        name = choice.best("a", NAMES, turn)
        assert name is not None
        choice.moved("a", name, GB, GB / true[name], turn)
    settled = choice.best("a", NAMES, len(NAMES) + 1)
    assert settled is not None
    assert all(true[settled] >= min(true[other], GUESSES[other]) * (1 - 1e-9) for other in NAMES)
