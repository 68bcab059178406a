"""The collector's turns: cycles go when the program is idle or there are very many, and not before."""

import gc
import weakref
from collections.abc import Iterator

import pytest
from warmfleet_router import garbage
from warmfleet_router.garbage import WHEN_IDLE, Collector

IDLE, BUSY = 0.0, 0.5  # CPU seconds a second


class Cycle:
    def __init__(self) -> None:
        self.own = self


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector(0.0, 0.0)
    yield made
    made.close()


def cycles(count: int) -> "weakref.ref[Cycle]":
    """So many objects that only the collector frees; the last of them."""
    for _ in range(count):
        last = Cycle()
    return weakref.ref(last)


def test_cycles_go_when_the_program_is_idle(collector: Collector) -> None:
    last = cycles(2 * WHEN_IDLE)
    assert not collector.turn(1.0, BUSY)
    assert last() is not None
    assert collector.turn(2.0, BUSY + IDLE)
    assert last() is None


def test_an_idle_program_without_garbage_is_left_alone(collector: Collector) -> None:
    collector.turn(1.0, IDLE)
    assert not collector.turn(2.0, IDLE)


def test_a_busy_program_collects_before_garbage_takes_much(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(garbage, "WHEN_BUSY", 3 * WHEN_IDLE)
    last = cycles(4 * WHEN_IDLE)
    assert collector.turn(1.0, BUSY)
    assert last() is None


def test_what_is_old_is_looked_through_only_when_much_has_come(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(garbage, "WHEN_BUSY", 4 * WHEN_IDLE)
    old = Cycle()
    gone = weakref.ref(old)
    cycles(2 * WHEN_IDLE)
    assert collector.turn(1.0, IDLE)
    del old
    kept = [[] for _ in range(2 * WHEN_IDLE)]  # type: list[list[int]]
    assert collector.turn(2.0, IDLE)
    assert gone() is not None
    kept += [[] for _ in range(3 * WHEN_IDLE)]
    assert collector.turn(3.0, IDLE)
    assert gone() is None
    last = cycles(2 * WHEN_IDLE)
    assert collector.turn(4.0, IDLE)
    assert last() is None


def test_python_collects_nothing_by_itself_until_it_is_closed(collector: Collector) -> None:
    assert not gc.isenabled()
    assert gc.get_freeze_count() > 0
    collector.close()
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0
