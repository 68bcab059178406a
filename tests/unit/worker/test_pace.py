"""When blocks are brought rather than computed, and how long that is waited for."""

import random

import pytest
from warmfleet_worker.pace import Pace
from warmfleet_worker.source import Source


def experienced() -> Pace:
    pace = Pace()
    pace.computed(100, 5000, 1.0)  # 10 ms a token
    pace.brought(Source.DISK, 10, 0.1)
    return pace


def test_without_experience_a_source_is_tried() -> None:
    pace = Pace()
    assert pace.worth(Source.DISK, 1, 16, 0.0)
    assert pace.patience_s(Source.DISK, 1, 16) == 1.0


def test_the_cheaper_way_is_taken() -> None:
    pace = experienced()
    assert pace.worth(Source.DISK, 4, 64, 0.0)  # .04 s against .64 s
    pace.computed(1000, 5e5, 0.01)
    for _ in range(30):
        pace.computed(1000, 5e5, 0.01)  # .01 ms a token
    assert not pace.worth(Source.DISK, 4, 64, 0.0)


def test_a_failed_source_rests_twice_as_long_each_time_and_then_costs_little() -> None:
    pace = experienced()
    assert pace.patience_s(Source.DISK, 7, 100) == 1.0
    pace.failed(Source.DISK, 10.0)
    assert not pace.worth(Source.DISK, 4, 64, 14.9)
    assert pace.worth(Source.DISK, 4, 64, 15.1)
    assert pace.patience_s(Source.DISK, 1, 100) == 0.05
    assert pace.patience_s(Source.DISK, 8, 128) == pytest.approx(0.24)  # three times the usual
    assert pace.patience_s(Source.HOST, 8, 128) == 1.28
    pace.failed(Source.DISK, 15.1)
    assert not pace.worth(Source.DISK, 4, 64, 25.0)
    assert pace.worth(Source.HOST, 4, 64, 25.0)
    for _ in range(20):
        pace.failed(Source.DISK, 30.0)
    assert pace.worth(Source.DISK, 4, 64, 331.0)
    pace.brought(Source.DISK, 4, 0.04)
    assert pace.worth(Source.DISK, 4, 64, 331.0)
    assert pace.patience_s(Source.DISK, 7, 100) == 1.0


def test_what_a_block_costs_is_learned_with_its_depth() -> None:
    prefill = Pace().prefill
    assert prefill.block_s(0, 16) == prefill.block_s(500, 16) * 1.0
    rng = random.Random(1)
    for _ in range(200):
        tokens, start = rng.randrange(16, 512), rng.randrange(0, 20_000)
        pairs = tokens * (start + 0.5 * tokens)
        prefill.computed(tokens, pairs, (24e-6 * tokens + 0.8e-9 * pairs) * rng.uniform(0.95, 1.05))
    assert prefill.block_s(0, 16) == pytest.approx(16 * 24e-6, rel=0.1)
    assert prefill.block_s(2000, 16) == pytest.approx(16 * (24e-6 + 0.8e-9 * 32_008), rel=0.1)
