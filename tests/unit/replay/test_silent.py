"""Workers that announce nothing: the router goes by its own placements, and is nearly as good."""

from collections.abc import Mapping

import pytest
from warmfleet_router.replay import report
from warmfleet_router.replay.fleet import Fleet
from warmfleet_router.replay.profile import flat
from warmfleet_router.routing import Routing

from tests.bars.traffic import conversation

WORKERS, BLOCKS = 4, 2000


def play(silent: Mapping[int, int], requests: int = 2500) -> Fleet:
    fleet = Fleet(Routing(), flat(0.025, 512), 512, [BLOCKS] * WORKERS, silent=silent)
    fleet.run(conversation(requests), speed=2.2)
    return fleet


def hit(fleet: Fleet) -> float:
    return report.summarise("p", fleet, 1.0).hit


@pytest.fixture(scope="module")
def announced() -> float:
    return hit(play({}))


@pytest.mark.parametrize(
    "silent",
    [
        dict.fromkeys(range(WORKERS), BLOCKS),
        {0: BLOCKS, 1: BLOCKS},
        dict.fromkeys(range(WORKERS), 0),
        dict.fromkeys(range(WORKERS), 4 * BLOCKS),
    ],
    ids=["all", "half", "without a size", "four times too large"],
)
def test_the_hit_rate_is_close_to_that_with_events(announced: float, silent: Mapping[int, int]) -> None:
    fleet = play(silent)
    assert announced > 0.15
    assert hit(fleet) > announced - 0.01
    for index in silent:
        guess = fleet.core.roster.fleet.workers[f"replay:{index}"].guess
        assert guess is not None
        assert guess.confidence > 0.9
        assert guess.capacity == pytest.approx(BLOCKS, rel=0.2)


def test_a_size_told_far_too_small_is_outgrown(announced: float) -> None:
    """Slowly: a router that expects nothing of a worker sends it little that could prove it wrong."""
    fleet = play(dict.fromkeys(range(WORKERS), BLOCKS // 4))
    guesses = [worker.guess for worker in fleet.core.roster.fleet.workers.values()]
    assert all(guess is not None and guess.capacity > BLOCKS // 2 for guess in guesses)
    assert hit(fleet) > 0.8 * announced


def test_a_silent_worker_starts_again_with_its_epoch() -> None:
    fleet = play({0: BLOCKS}, requests=200)
    worker = fleet.core.roster.fleet.workers["replay:0"]
    assert worker.guess is not None
    held = len(worker.guess)
    view = fleet.core.workers(fleet.now)[0]
    assert (view.held_blocks, view.guessed_blocks) == (held, BLOCKS)
    assert held > 100
    fleet.members[0].announcer.epoch += 1
    fleet.members[0].announcer.told_at = 0.0
    fleet._tell(fleet.members[0])
    assert len(worker.guess) == fleet.core.workers(fleet.now)[0].held_blocks == 0
