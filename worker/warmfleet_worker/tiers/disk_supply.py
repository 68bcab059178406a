"""The disk tier as a source of blocks, for the scheduler."""

from warmfleet_worker.fetch import Fetch, Stock, Supply
from warmfleet_worker.sequence import Sequence
from warmfleet_worker.source import Source
from warmfleet_worker.tiers.catalogue import Catalogue


class DiskSupply(Supply):
    """Token ids are compared where the block is read."""

    source = Source.DISK

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue

    def find(self, sequence: Sequence, start: int) -> int:
        return self._catalogue.run(sequence.request.root, sequence.hashes, start)

    def take(self, sequence: Sequence, start: int, count: int) -> list[Stock]:
        self._catalogue.use(sequence.hashes[: start + count])
        return [Stock()] * count

    def give_back(self, fetch: Fetch) -> None:
        """What is given up meanwhile is missed when it is read."""
