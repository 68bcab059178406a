"""The real model is exact (issue 2, bar 2): 12 short conversations; `make bars` runs 50 longer ones."""

import pytest

from tests.bars.exactness import AGREES, SETTINGS, SHORT, TRANSFORMERS_AGREES, Bench, Setting

COUNT = 12


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench(COUNT, SHORT, threads=1)


@pytest.mark.timeout(300)
def test_transformers_agrees(bench: Bench) -> None:
    assert bench.transformers_difference() <= TRANSFORMERS_AGREES


@pytest.mark.timeout(300)
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_no_logit_depends_on_cache_batch_or_chunk(bench: Bench, setting: Setting) -> None:
    """One by one each conversation meets one setting, eight at once each meets four."""
    turn = SETTINGS.index(setting)
    first = 2 * turn if setting.concurrent == 1 else turn
    count = 2 if setting.concurrent == 1 else 8
    conversations = [bench.conversations[(first + i) % COUNT] for i in range(count)]
    found = bench.run(setting, conversations)
    assert found.difference <= AGREES
    assert found.wrong == 0
    assert found.drawn == count * SHORT.turns * SHORT.reply
    assert (found.cached_tokens > 0) == setting.cached
