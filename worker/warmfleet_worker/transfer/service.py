"""The Transfer service of transfer.proto: leases for whoever shows a grant of the router."""

import logging
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import grpc
from warmfleet_proto.hashing import token_digest
from warmfleet_proto.limits import SECRET_BYTES
from warmfleet_proto.transfer_pb2 import LeaseRequest, LeaseResponse, Offer, ReleaseRequest, ReleaseResponse
from warmfleet_proto.transfer_pb2_grpc import TransferServicer

from warmfleet_worker.runner import Runner
from warmfleet_worker.transfer.grant import Gatekeeper, granted_hashes
from warmfleet_worker.transfer.leases import Lease as OpenLease
from warmfleet_worker.transfer.leases import Leases, Record
from warmfleet_worker.transfer.refusal import Refusal, Refused

_log = logging.getLogger(__name__)

Records = Callable[[bytes, Sequence[bytes]], Awaitable[Mapping[bytes, Record]]]
"""Those on disk, of a root and leading hashes."""

_BY_DEVICE = ("cuda",)  # transports that read nothing but the pool
_CODES = {
    Refusal.MALFORMED: grpc.StatusCode.INVALID_ARGUMENT,
    Refusal.OTHER_LAYOUT: grpc.StatusCode.FAILED_PRECONDITION,
    Refusal.FULL: grpc.StatusCode.RESOURCE_EXHAUSTED,
}


class TransferService(TransferServicer):
    """``offers`` are the open data ports."""

    def __init__(
        self, runner: Runner, gatekeeper: Gatekeeper, lent: Leases, records: Records | None = None
    ) -> None:
        self.offers: list[Offer] = []
        self.lent = 0  # leases
        self.expired = 0  # of those, not released by their targets
        self.refused: Counter[Refusal] = Counter()
        self.leases = lent
        self._runner = runner
        self._gatekeeper = gatekeeper
        self._records = records

    async def Lease(self, request: LeaseRequest, context: Any) -> LeaseResponse:  # noqa: N802
        try:
            lease = await self._lease(request)
        except Refused as error:
            self.refused[error.refusal] += 1
            _log.warning("no lease for %.128r (%s): %s", request.target, error.refusal, error)
            code = _CODES.get(error.refusal, grpc.StatusCode.PERMISSION_DENIED)
            await context.abort(code, f"{error.refusal}: {error}")
        return self._response(lease, request.digest)

    async def Release(self, request: ReleaseRequest, context: Any) -> ReleaseResponse:  # noqa: N802
        known = self.leases.release(request.lease, request.secret)
        if known:
            self._runner.nudge()
        return ReleaseResponse(known=known)

    def expire(self) -> None:
        """To be called a few times a second."""
        if count := self.leases.expire(self._runner.now()):
            self.expired += count
            self._runner.nudge()

    async def _lease(self, request: LeaseRequest) -> OpenLease | None:
        runner = self._runner
        allowed = self._gatekeeper.allowed(request.grant, request.target, runner.now())
        if request.layout_fingerprint != runner.engine.layout:
            raise Refused(Refusal.OTHER_LAYOUT, "the target's copies have another layout")
        if request.hashes:
            hashes = granted_hashes(allowed, request.first, request.hashes)
        else:
            hashes = self.leases.named(allowed, request.first)
        records = await self._stored(allowed.root, hashes)
        number, secret = secrets.randbits(64), secrets.token_bytes(SECRET_BYTES)
        now = runner.now()
        return self.leases.open(number, secret, request.target, allowed, hashes, now, records)

    async def _stored(self, root: bytes, hashes: Sequence[bytes]) -> Mapping[bytes, Record]:
        """Records on disk of what no memory holds."""
        if self._records is None:
            return {}
        stored = hashes[self.leases.reach(root, hashes) :]
        return await self._records(root, stored) if stored else {}

    def _response(self, lease: OpenLease | None, digest: bool) -> LeaseResponse:
        """Without a lease when nothing is readable any more."""
        if lease is None:
            return LeaseResponse()
        self.lent += 1
        token_ids = b"".join([each.token_ids for each in lease.lent])
        return LeaseResponse(
            lease=lease.id,
            secret=lease.secret,
            blocks=len(lease.lent),
            token_ids=b"" if digest else token_ids,
            token_digest=token_digest(token_ids) if digest else b"",
            offers=[each for each in self.offers if lease.on_device or each.transport not in _BY_DEVICE],
        )
