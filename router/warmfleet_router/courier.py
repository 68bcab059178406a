"""Has workers carry out the orders of a core's replication: one call of Bring an order."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Self

import grpc
from warmfleet_proto import worker_pb2 as pb
from warmfleet_proto import worker_pb2_grpc
from warmfleet_proto.channel import connect
from warmfleet_proto.tasks import cancelled
from warmfleet_proto.transfer_pb2 import Pull, Pulled

from warmfleet_router.core import RouterCore
from warmfleet_router.grant import Granter, claims_of
from warmfleet_router.moving.replication import Order

_log = logging.getLogger(__name__)

TICK_S = 0.1  # as the core's own


class Courier:
    """``async with``: looks for orders until the block is left. ``clock`` is monotonic seconds."""

    def __init__(
        self,
        core: RouterCore,
        granter: Granter,
        clock: Callable[[], float],
        channel: Callable[[str], grpc.aio.Channel] = connect,
    ) -> None:
        self._core = core
        self._granter = granter
        self._clock = clock
        self._channel = channel
        self._channels: dict[str, grpc.aio.Channel] = {}  # by address of a worker that is known
        self._looking: asyncio.Task[None]
        self._errands: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._looking = asyncio.create_task(self._look(), name="courier")
        return self

    async def __aexit__(self, *_: object) -> None:
        await cancelled(self._looking, *self._errands)
        for channel in self._channels.values():
            await channel.close(None)

    async def _look(self) -> None:
        while True:
            for order in self._core.replication.take_orders():
                errand = asyncio.create_task(self._carry(order), name=f"order {order.id}")
                self._errands.add(errand)
                errand.add_done_callback(self._errands.discard)
            await self._prune()
            await asyncio.sleep(TICK_S)

    async def _carry(self, order: Order) -> None:
        """Its end is always told."""
        pulled: Pulled | None = None
        try:
            answer = await self._stub(order.target.address).Bring(
                self._request(order), timeout=order.within_s + 1.0
            )
            pulled = answer.pulled
        except grpc.aio.AioRpcError as error:
            _log.info("%s brings nothing from %s: %s", order.target.name, order.source.name, error.details())
        finally:
            self._core.brought(order.id, pulled, self._clock())

    def _request(self, order: Order) -> pb.BringRequest:
        size = order.group.block_size
        pull = Pull(
            source=order.source.name,
            address=order.source.address,
            from_tokens=order.first * size,
            tokens=order.blocks * size,
            within_s=order.within_s,
            grant=self._granter.grant(claims_of(order, self._clock())),
        )
        return pb.BringRequest(root=order.prefix.root, keys=order.keys, pull=pull)

    def _stub(self, address: str) -> Any:
        channel = self._channels.get(address)
        if channel is None:
            channel = self._channels[address] = self._channel(address)
        return worker_pb2_grpc.WorkerStub(channel)  # type: ignore[no-untyped-call]

    async def _prune(self) -> None:
        """A broken channel is made anew; of a worker that is gone none is kept."""
        known = {w.address for w in self._core.roster.fleet.workers.values() if w.connected}
        for address in [address for address in self._channels if address not in known]:
            await self._channels.pop(address).close(None)
