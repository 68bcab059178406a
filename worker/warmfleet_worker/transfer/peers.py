"""Channels to peers, made when they are first needed and kept while they are used."""

import contextlib

import grpc
from warmfleet_proto.channel import Tls, connect
from warmfleet_proto.transfer_pb2 import ReleaseRequest
from warmfleet_proto.transfer_pb2_grpc import TransferStub

MAX_PEERS = 64
_RELEASE_S = 2.0  # a lost release costs the source a lease's TTL, nothing more


class Peers:
    def __init__(self, tls: Tls | None = None) -> None:
        self._tls = tls
        self._channels: dict[str, grpc.aio.Channel] = {}  # the longest unused first

    def stub(self, address: str) -> TransferStub:
        channel = self._channels.pop(address, None) or connect(address, self._tls)
        self._channels[address] = channel
        return TransferStub(channel)  # type: ignore[no-untyped-call]

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
