"""Peers as a source of blocks: they have what a request's pull names, and nothing else."""

from collections.abc import Callable

from warmfleet_worker.fetch import Fetch, Stock, Supply
from warmfleet_worker.sequence import Sequence
from warmfleet_worker.source import Source


class PeerSupply(Supply):
    """The router has decided that the pull is worth it: that is not weighed again here."""

    source = Source.PEER

    def __init__(self, usual_s: Callable[[str, int], float | None] = lambda _source, _blocks: None) -> None:
        """``usual_s`` tells how long so many blocks of a peer usually take, if this worker knows."""
        self._usual_s = usual_s

    def find(self, sequence: Sequence, start: int) -> int:
        pull = sequence.request.pull
        if pull is None or sequence.request.pulled is not None or not pull.first <= start:
            return 0
        return max(min(pull.first + pull.blocks, len(sequence.hashes)) - start, 0)

    def patience_s(self, sequence: Sequence) -> float | None:
        return sequence.request.pull.within_s if sequence.request.pull else None

    def expected_s(self, sequence: Sequence, count: int) -> float | None:
        """What pulls from this peer took here; else what the router expects of the link, which does not know
        by which transport the two reach each other. For a part of the pull, in proportion."""
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
