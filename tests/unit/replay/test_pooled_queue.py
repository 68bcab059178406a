"""One queue over a pooled cache, which the live bars' placement is held against."""

from array import array

import pytest
from warmfleet_router.replay.profile import flat
from warmfleet_router.replay.trace import Request, Trace

from tests.bars.pooled import Queue

BLOCK, TOKEN_S = 16, 1e-3


def request(at: float, *keys: int) -> Request:
    """Two and a half blocks, of one token to answer."""
    return Request(at, array("Q", keys), 40, 1)


def ttfts(workers: int, *requests: Request) -> list[float]:
    queue = Queue(flat(BLOCK * TOKEN_S, BLOCK), BLOCK, workers)
    queue.run(Trace("t", BLOCK, list(requests)))
    return queue.ttfts


def test_who_shares_waits_for_the_prefix_and_lets_others_pass() -> None:
    first, sharing, other = request(0.0, 1, 2), request(0.001, 1, 2), request(0.002, 3, 4)
    assert ttfts(2, first, sharing, other) == pytest.approx([0.040, 0.040, 0.047])


def test_any_worker_has_what_one_has_computed() -> None:
    first, long, sharing = request(0.0, 1, 2), request(0.050, 3, 4), request(0.060, 1, 2)
    assert ttfts(2, first, long, sharing) == pytest.approx([0.040, 0.008, 0.040])


def test_first_come_first_served() -> None:
    assert ttfts(1, request(0.0, 1, 2), request(0.01, 3, 4), request(0.02, 5, 6)) == pytest.approx(
        [0.040, 0.070, 0.100]
    )
