"""Peers as a source of blocks: what a request's pull names can be found there, nothing else."""

from collections.abc import Callable

from warmfleet_worker.fetch import Fetch, Stock, Supply
from warmfleet_worker.sequence import Sequence
from warmfleet_worker.source import Source


class PeerSupply(Supply):
    """The router has priced the pull: nothing is weighed again here."""

    source = Source.PEER

    def __init__(self, usual_s: Callable[[str, int], float | None] = lambda _source, _blocks: None) -> None:
        """``usual_s``: that so many blocks of this peer take, where it is known here."""
        self._usual_s = usual_s

    def find(self, sequence: Sequence, start: int) -> int:
        pull = sequence.request.pull
        if pull is None or sequence.request.pulled is not None or not pull.first <= start:
            return 0
        return max(min(pull.first + pull.blocks, len(sequence.hashes)) - start, 0)

    def patience_s(self, sequence: Sequence) -> float | None:
        return sequence.request.pull.within_s if sequence.request.pull else None

    def expected_s(self, sequence: Sequence, count: int) -> float | None:
        """As pulls from this peer took here; else as the router has learned of the link, or guessed: it does
        not know by which transport the two reach each other. Of a part, in proportion."""
        pull = sequence.request.pull
        if pull is None:
            return None
        usual_s = self._usual_s(pull.source, count)
        if usual_s is None and pull.seconds:
            return pull.seconds * count / pull.blocks
        return usual_s

    def take(self, sequence: Sequence, start: int, count: int) -> list[Stock]:
        return [Stock()] * count

    def give_back(self, fetch: Fetch) -> None:
        """Leases are given back by the carrier."""
