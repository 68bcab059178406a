"""Which steps are met before the first request comes."""

from itertools import pairwise

import pytest
from warmfleet_worker.engine.warming import sizes


@pytest.mark.parametrize(("shortest", "longest"), [(1, 8192), (1, 300), (1, 1), (256, 256)])
def test_no_prompt_is_far_from_one_that_was_met(shortest: int, longest: int) -> None:
    met = list(sizes(shortest, longest))
    assert (met[0], met[-1]) == (shortest, longest)
    assert all(0 < b - a <= max(a / 8, 64) for a, b in pairwise(met))
    assert len(met) <= 40
