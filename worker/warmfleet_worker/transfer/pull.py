"""What a request says of blocks that a peer holds, and what became of bringing them."""

from enum import StrEnum
from typing import NamedTuple

from warmfleet_proto.transfer_pb2 import Grant


class Failure(StrEnum):
    """Why blocks of a pull did not come. A closed set: it labels a metric."""

    NONE = ""
    REFUSED = "refused"  # by the source: the grant, the layout, or too many leases
    GONE = "gone"  # the source does not hold them any more
    LOST = "lost"  # the source or its connection, twice
    CORRUPT = "corrupt"  # sums or token ids disagree
    GIVEN_UP = "given_up"  # it was too late, or the request left
    FULL = "full"  # as many pulls as may be are under way here


class Pull(NamedTuple):
    """Blocks ``first`` to ``first + blocks`` of the prompt's chain lie at ``source``."""

    source: str
    address: str
    first: int
    blocks: int
    within_s: float
    grant: Grant
    seconds: float = 0.0  # that it is expected to take; 0: unknown


class Pulled(NamedTuple):
    """What became of a pull so far. If the fetch was given up, ``seconds`` is the time until then, and more
    bytes may still be on their way."""

    seconds: float
    bytes: int
    wasted_bytes: int
    failure: Failure
