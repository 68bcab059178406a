"""Conversations in virtual time: who asks has read the answer to the question before."""

from array import array

import pytest
from warmfleet_router.replay.fleet import Fleet
from warmfleet_router.replay.profile import flat
from warmfleet_router.replay.trace import Request, Trace
from warmfleet_router.replay.turns import Turns
from warmfleet_router.routing import Routing

from tests.bars.pooled import Queue

BLOCK, TOKEN_S = 16, 1e-3


def turn(at: float, conversation: int | None, *keys: int) -> Request:
    """All of these blocks and half of one more, of one token to answer."""
    return Request(at, array("Q", keys), len(keys) * BLOCK + 8, 1, conversation)


def test_each_goes_when_the_one_before_has_ended() -> None:
    turns = Turns()
    first, second, third, other = (turn(0.0, c) for c in (1, 1, 1, 2))
    assert [turns.come(request) for request in (first, second, third, other)] == [True, False, False, True]
    assert turns.ended(first) is second
    assert turns.ended(second) is third
    assert turns.ended(other) is turns.ended(third) is None
    assert turns.come(first), "and the conversation goes on later"


def test_requests_of_no_conversation_wait_for_nobody() -> None:
    turns = Turns()
    assert [turns.come(turn(0.0, None)) for _ in range(2)] == [True, True]
    assert turns.ended(turn(0.0, None)) is None


@pytest.mark.parametrize(("conversation", "sent_at"), [(1, 0.040), (None, 0.010)])
def test_a_fleet_holds_a_turn_back(conversation: int | None, sent_at: float) -> None:
    """Else it meets the turn before in the queue, and leaves its holder for that."""
    fleet = Fleet(Routing(policy="round_robin"), flat(BLOCK * TOKEN_S, BLOCK), BLOCK, [100])
    first, second = turn(0.0, conversation, 1, 2), turn(0.010, conversation, 1, 2, 3)
    fleet.run(Trace("t", BLOCK, [first, second]))
    assert [o.arrival_s for o in fleet.outcomes] == pytest.approx([0.0, sent_at])
    assert fleet.outcomes[1].ttft_s == pytest.approx(0.064 - sent_at)


@pytest.mark.parametrize(("conversation", "second_s"), [(1, 0.024), (None, 0.054)])
def test_so_does_one_queue(conversation: int | None, second_s: float) -> None:
    queue = Queue(flat(BLOCK * TOKEN_S, BLOCK), BLOCK, 2)
    queue.run(Trace("t", BLOCK, [turn(0.0, conversation, 1, 2), turn(0.010, conversation, 1, 2, 3)]))
    assert queue.ttfts == pytest.approx([0.040, second_s])
