"""What a peer can bring, and how long that is expected to take."""

from warmfleet_proto.transfer_pb2 import Grant
from warmfleet_worker.sequence import Sequence, new_sequence
from warmfleet_worker.transfer.pull import Pull
from warmfleet_worker.transfer.supply import PeerSupply

from tests.unit.worker.driver import Driver


def asking(seconds: float) -> Sequence:
    """For eight blocks, that the router expects to take so long."""
    request = Driver().request([*range(40)])
    request.pull = Pull("a", "a:1", 2, 8, 60.0, Grant(), seconds)
    return new_sequence(request)


def test_what_pulls_from_there_took_comes_before_what_the_router_expects() -> None:
    known = PeerSupply(lambda source, blocks: {"a": 0.001}[source] * blocks)
    assert known.expected_s(asking(4.0), 4) == 0.004


def test_where_nothing_came_from_the_router_knows_or_nobody() -> None:
    assert PeerSupply().expected_s(asking(4.0), 4) == 2.0, "half of it, in half of the time"
    assert PeerSupply().expected_s(asking(0.0), 4) is None
