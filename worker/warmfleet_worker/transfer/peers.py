"""Peers that lend blocks: channels to them, made when they are first needed and kept while they are used."""

import contextlib
from collections.abc import Awaitable

import grpc
from warmfleet_proto.channel import Tls, connect
from warmfleet_proto.transfer_pb2 import LeaseRequest, LeaseResponse, ReleaseRequest
from warmfleet_proto.transfer_pb2_grpc import TransferStub

from warmfleet_worker.transfer.pull import Failure
from warmfleet_worker.transfer.trip import Failed

MAX_PEERS = 64
_LEASE_S = 2.0  # for an answer from the source
_RELEASE_S = 2.0  # a lost release costs the source a lease's TTL, nothing more
_REFUSALS = (
    "PERMISSION_DENIED", "FAILED_PRECONDITION", "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED", "UNIMPLEMENTED",
)  # fmt: skip


class Peers:
    def __init__(self, tls: Tls | None = None) -> None:
        self._tls = tls
        self._channels: dict[str, grpc.aio.Channel] = {}  # the longest unused first

    def stub(self, address: str) -> TransferStub:
        channel = self._channels.pop(address, None) or connect(address, self._tls)
        self._channels[address] = channel
        return TransferStub(channel)  # type: ignore[no-untyped-call]

    def lease(self, address: str, request: LeaseRequest) -> Awaitable[LeaseResponse]:
        """Asks at once. Awaiting the answer gives a lease of at least one block, or raises Failed."""
        return _lent(self.stub(address).Lease(request, timeout=_LEASE_S))

    async def release(self, address: str, lease: int, secret: bytes) -> None:
        with contextlib.suppress(grpc.aio.AioRpcError):
            request = ReleaseRequest(lease=lease, secret=secret)
            await self.stub(address).Release(request, timeout=_RELEASE_S)
        await self._prune()

    async def close(self) -> None:
        channels, self._channels = self._channels, {}
        for channel in channels.values():
            await channel.close(None)

    async def _prune(self) -> None:
        while len(self._channels) > MAX_PEERS:
            await self._channels.pop(next(iter(self._channels))).close(None)


async def _lent(asked: Awaitable[LeaseResponse]) -> LeaseResponse:
    try:
        lease = await asked
    except grpc.aio.AioRpcError as error:
        failure = Failure.REFUSED if error.code().name in _REFUSALS else Failure.LOST
        raise Failed(failure, error.details() or str(error.code()), failure is not Failure.LOST) from None
    if not lease.blocks:
        raise Failed(Failure.GONE, "the source holds none of the blocks any more")
    return lease
