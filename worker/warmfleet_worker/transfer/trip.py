"""One fetch from a peer on its way, over however many attempts."""

from collections.abc import Callable

from warmfleet_proto.transfer_pb2 import LeaseResponse

from warmfleet_worker.engine.base import Engine
from warmfleet_worker.fetch import Fetch
from warmfleet_worker.transfer.frames import seeds
from warmfleet_worker.transfer.haul import PoolHaul
from warmfleet_worker.transfer.pull import Failure, Pull
from warmfleet_worker.transfer.slabs import Slabs


class Failed(Exception):
    def __init__(self, failure: Failure, why: str, final: bool = True) -> None:
        super().__init__(why)
        self.failure = failure
        self.final = final  # another attempt would fare no better


class Trip:
    """One fetch on its way."""

    def __init__(self, fetch: Fetch, began: float) -> None:
        assert fetch.request.pull is not None
        self.fetch = fetch
        self.pull: Pull = fetch.request.pull
        self.began = began
        self.abandoned = self.turned = False
        self.told = 0
        # Made before the source is asked: then nothing is left to do but to move.
        self._token_ids = b"".join([piece.token_ids for piece in fetch.pieces])
        self._targets = [piece.block for piece in fetch.pieces]
        self._seeds = seeds([piece.hash for piece in fetch.pieces])
        self._bytes_before = 0
        self._before = 0  # arrived in earlier attempts
        self._haul: PoolHaul | None = None
        self._whole = False  # it brings all that has not arrived

    @property
    def arrived(self) -> int:
        """Leading pieces that are in the pool."""
        return self._before + (self._haul.arrived if self._haul else 0)

    @property
    def back(self) -> int:
        """Trailing pieces that are in the pool."""
        return self._haul.back if self._haul else 0

    @property
    def there(self) -> int:
        return self.arrived + self.back

    @property
    def received_bytes(self) -> int:
        return self._bytes_before + (self._haul.received_bytes if self._haul else 0)

    @property
    def ending(self) -> Failure:
        """Of one that is abandoned: what comes from the end is wanted until it meets what was computed."""
        return Failure.NONE if self.back else Failure.GIVEN_UP

    def abandon(self) -> None:
        """Nobody waits for it any more."""
        self.abandoned = True
        self.stop()

    def turn(self) -> None:
        """From its end on; not where the source lends a part only, whose end is another."""
        self.turned = True
        if self._haul is not None and self._whole:
            self._haul.turn()

    def check(self, lease: LeaseResponse) -> None:
        """Raises Failed unless the source means the same tokens by the blocks that it lends."""
        size = len(self._token_ids) // len(self.fetch.pieces)
        wanted = self._token_ids[self.arrived * size : (self.arrived + lease.blocks) * size]
        if lease.blocks > len(self.fetch.pieces) - self.arrived or lease.token_ids != wanted:
            raise Failed(Failure.CORRUPT, "the source's blocks stand for other tokens")

    def begin(self, engine: Engine, slabs: Slabs | None, blocks: int, tell: Callable[[], None]) -> PoolHaul:
        """Of the ``blocks`` that were lent; ``slabs`` where they pass through some. Raises Failed."""
        self._before, self._bytes_before, self._haul = self.arrived, self.received_bytes, None
        lent = slice(self._before, self._before + blocks)
        try:
            haul = PoolHaul(engine, slabs, self._targets[lent], self._seeds[lent], tell)
        except BlockingIOError as error:
            raise Failed(Failure.FULL, str(error)) from None
        self._haul, self._whole = haul, self._before + blocks == len(self.fetch.pieces)
        if self.turned:
            self.turn()
        return haul

    def stop(self) -> None:
        if self._haul is not None:
            self._haul.stop()
