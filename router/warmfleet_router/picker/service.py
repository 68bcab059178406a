"""The endpoint picker over gRPC: Envoy asks for each request where it should go, and streams it itself."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
from envoy.service.ext_proc.v3 import external_processor_pb2, external_processor_pb2_grpc
from warmfleet_proto import channel
from warmfleet_proto.channel import Tls

from warmfleet_router.gateway.intake import Tenants
from warmfleet_router.gateway.relaying import Relays
from warmfleet_router.picker.exchange import Exchange

_STOP_S = 1.0
_MESSAGE_BYTES = 1 << 20  # beyond the body


class Picker(external_processor_pb2_grpc.ExternalProcessorServicer):  # type: ignore[misc]
    def __init__(self, relays: Relays, tenants: Tenants, body_bytes: int) -> None:
        self._relays = relays
        self._tenants = tenants
        self._body_bytes = body_bytes

    async def Process(self, _: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:  # noqa: N802
        """One stream a request. Read and written by hand: generators in between cost a tenth of it."""
        exchange = Exchange(self._relays, self._tenants, self._body_bytes)
        error: BaseException | None = None
        try:
            while (message := await context.read()) is not grpc.aio.EOF:  # type: ignore[attr-defined]
                for reply in await exchange.take(message):
                    await context.write(reply)
        except asyncio.CancelledError:
            raise  # how Envoy ends a stream that it needs no more
        except BaseException as failure:
            error = failure
            raise
        finally:
            exchange.ended(error)


@asynccontextmanager
async def serving(
    address: str, tls: Tls | None, relays: Relays, tenants: Tenants, body_bytes: int
) -> AsyncIterator[str]:
    """The picker while the block lasts; the address that it has got."""
    services = [external_processor_pb2.DESCRIPTOR.services_by_name["ExternalProcessor"]]
    server, health = channel.server(services, message_bytes=body_bytes + _MESSAGE_BYTES)
    picker = Picker(relays, tenants, body_bytes)
    external_processor_pb2_grpc.add_ExternalProcessorServicer_to_server(picker, server)
    port = channel.bind(server, address, tls)
    await server.start()
    await health.set_serving(True)
    try:
        yield f"{address.rpartition(':')[0]}:{port}"
    finally:
        await health.set_serving(False)
        await server.stop(_STOP_S)
