"""Blocks that are brought into the device pool instead of computed: what is ordered, and what carriers
answer.

A Fetch goes to the carrier of its source. The carrier answers with Arrivals, the last of which is ``over``. A
block has arrived when its layout, checksum and token ids have been verified and its bytes are in the pool.
Every fetch must end in this way, abandoned ones too: until then its blocks stay pinned.
"""

from typing import NamedTuple, Protocol

from warmfleet_worker.sequence import Request, Sequence
from warmfleet_worker.source import Source


class Stock(NamedTuple):
    """Where a block lies at its source. Only the source knows what the fields mean."""

    slot: int = 0
    sum: bytes = b""


class Piece(NamedTuple):
    hash: bytes
    token_ids: bytes  # packed u32: must agree with what the source's copy says
    block: int  # of the device pool, where it goes
    stock: Stock


class Fetch(NamedTuple):
    """A run of one chain, to be brought from its front on."""

    id: int
    source: Source
    request: Request  # who asked first; it may end before the fetch does
    root: bytes
    parent: bytes  # BlockHash of the block before the first piece, or the root
    depth: int  # blocks before the first piece
    pieces: tuple[Piece, ...]


class Abandon(NamedTuple):
    """Nobody waits for the fetch any more: bring no more of it, and answer that it is over."""

    id: int


class Turn(NamedTuple):
    """The front of the fetch is being computed: bring the rest from its end, if the source can."""

    id: int


Order = Fetch | Abandon | Turn


class Arrival(NamedTuple):
    id: int
    arrived: int  # leading pieces that are in the pool by now
    over: bool = True
    failure: str = ""  # why the rest does not come; empty when all came or it was abandoned
    back: int = 0  # trailing pieces that are in the pool by now


MISSES = ("corrupt", "gone")  # failures that say nothing about how quickly the source brings what it has


class Supply(Protocol):
    """What a source can bring. Asked by the scheduler; does no I/O."""

    @property
    def source(self) -> Source: ...

    def find(self, sequence: Sequence, start: int) -> int:
        """How many consecutive blocks of the sequence's chain it holds from position ``start`` on."""

    def patience_s(self, sequence: Sequence) -> float | None:
        """How long bringing it may take, if somebody has weighed already whether it is worth it. None: that
        is to be weighed here, and it may take as long as computing it would."""
        return None

    def expected_s(self, sequence: Sequence, count: int) -> float | None:
        """How long bringing ``count`` blocks is expected to take, if that is known better than by what this
        worker has measured."""
        return None

    def take(self, sequence: Sequence, start: int, count: int) -> list[Stock]:
        """Keeps blocks that ``find`` has just found from being displaced at their source, until
        ``give_back``."""

    def give_back(self, fetch: Fetch) -> None:
        """The fetch is over."""
