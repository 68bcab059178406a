"""Peers as a source of blocks: what a request's pull names can be found there, nothing else."""

from warmfleet_worker.fetch import Fetch, Stock
from warmfleet_worker.sequence import Sequence
from warmfleet_worker.source import Source


class PeerSupply:
    """See ``fetch.Supply``. The router has priced the pull: nothing is weighed again here."""

    source = Source.PEER

    def find(self, sequence: Sequence, start: int) -> int:
        pull = sequence.request.pull
        if pull is None or sequence.request.pulled is not None or not pull.first <= start:
            return 0
        return max(min(pull.first + pull.blocks, len(sequence.hashes)) - start, 0)

    def patience_s(self, sequence: Sequence) -> float | None:
        return sequence.request.pull.within_s if sequence.request.pull else None

    def expected_s(self, sequence: Sequence, count: int) -> float | None:
        """As the router has learned of the link; of a part, in proportion."""
        pull = sequence.request.pull
        return pull.seconds * count / pull.blocks if pull and pull.seconds else None

    def take(self, sequence: Sequence, start: int, count: int) -> list[Stock]:
        return [Stock()] * count

    def give_back(self, fetch: Fetch) -> None:
        """Leases are given back by the carrier."""
