"""Blocks that are brought into the device pool instead of computed: what is ordered, what is told.

A Fetch goes to the carrier of its source; the carrier answers with Arrivals, the last of which is ``over``.
It says that a block has arrived only when layout, checksum and token ids have been verified and the bytes
are in the pool. It owes an end to every fetch, an abandoned one too: until then the blocks are pinned.
"""

from typing import NamedTuple, Protocol

from warmfleet_worker.sequence import Request, Sequence
from warmfleet_worker.source import Source


class Stock(NamedTuple):
    """Where a block lies at its source; what it means is the source's own business."""

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
    """Nobody waits for the fetch any more: bring no more of it, and say that it is over."""

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


MISSES = ("corrupt", "gone")  # failures that say nothing of how quickly the source brings what it has


class Supply(Protocol):
    """What a source can bring: pure, asked by the scheduler."""

    @property
    def source(self) -> Source: ...

    def find(self, sequence: Sequence, start: int) -> int:
        """How many consecutive blocks of the sequence's chain it holds from position ``start`` on."""

    def patience_s(self, sequence: Sequence) -> float | None:
        """How long bringing it may take, where that has been weighed already; None: as long as computing it
        would, and only if it is worth it."""
        return None

    def expected_s(self, sequence: Sequence, count: int) -> float | None:
        """How long bringing ``count`` blocks is expected to take, where somebody knows better than what was
        measured here."""
        return None

    def take(self, sequence: Sequence, start: int, count: int) -> list[Stock]:
        """Keeps those that ``find`` has just found where they are, until ``give_back``."""

    def give_back(self, fetch: Fetch) -> None:
        """The fetch is over."""
