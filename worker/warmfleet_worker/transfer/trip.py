"""One fetch from a peer on its way, over however many attempts."""

from collections.abc import Callable

from warmfleet_proto.hashing import token_digest
from warmfleet_proto.transfer_pb2 import LeaseRequest, LeaseResponse

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
        self._token_ids = self._digest = b""
        self._targets: list[int] = []
        self._seeds: list[int] = []
        self._bytes_before = 0
        self._before = 0  # arrived in earlier attempts
        self._haul: PoolHaul | None = None
        self._whole = False  # the haul brings all that has not arrived

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
        """What an abandoned one counts as: one that came from the end has met what was computed, as
        intended."""
        return Failure.NONE if self.back else Failure.GIVEN_UP

    def abandon(self) -> None:
        """Nobody waits for it any more."""
        self.abandoned = True
        self.stop()

    def turn(self) -> None:
        """Bring the rest from the end on. Not if the source lends only a part: its end is not the fetch's
        end."""
        self.turned = True
        if self._haul is not None and self._whole:
            self._haul.turn()

    def question(self, target: str, layout: bytes) -> LeaseRequest:
        """Asks for a lease of what has not arrived."""
        return LeaseRequest(
            target=target,
            grant=self.pull.grant,
            layout_fingerprint=layout,
            first=self.fetch.depth + self.arrived,
            hashes=b"".join([piece.hash for piece in self.fetch.pieces[self.arrived :]]),
            digest=True,
        )

    def prepare(self) -> None:
        """Does, once, what can be done before the source has answered."""
        if not self._targets:
            pieces = self.fetch.pieces
            self._targets = [piece.block for piece in pieces]
            self._seeds = seeds([piece.hash for piece in pieces])
            self._token_ids = b"".join([piece.token_ids for piece in pieces])
            self._digest = token_digest(self._token_ids)

    def check(self, lease: LeaseResponse) -> None:
        """Raises Failed unless the source means the same tokens by the blocks that it lends."""
        self.prepare()
        if lease.blocks > len(self.fetch.pieces) - self.arrived or not self._agrees(lease):
            raise Failed(Failure.CORRUPT, "the source's blocks stand for other tokens")

    def _agrees(self, lease: LeaseResponse) -> bool:
        """Compares a digest of the token ids, or the ids themselves: a source may know nothing of digests."""
        if lease.blocks == len(self.fetch.pieces) and lease.token_digest:
            return lease.token_digest == self._digest
        size = len(self._token_ids) // len(self.fetch.pieces)
        wanted = self._token_ids[self.arrived * size : (self.arrived + lease.blocks) * size]
        return token_digest(wanted) == lease.token_digest if lease.token_digest else lease.token_ids == wanted

    def begin(self, engine: Engine, slabs: Slabs | None, blocks: int, tell: Callable[[], None]) -> PoolHaul:
        """Makes the haul of the ``blocks`` that were lent; ``slabs`` if they pass through some. Raises
        Failed."""
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
