"""A picker that picks nothing: what gRPC alone costs, to stand beside the real one."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import grpc
import uvloop
from envoy.service.ext_proc.v3 import external_processor_pb2_grpc as stubs
from warmfleet_router.picker import replies


class Empty(stubs.ExternalProcessorServicer):
    async def Process(self, messages: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        async for message in messages:
            yield replies.goes_on(message.WhichOneof("request"))


async def serve() -> None:
    server = grpc.aio.server()
    stubs.add_ExternalProcessorServicer_to_server(Empty(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(json.dumps({"ready": True, "picker": f"127.0.0.1:{port}"}), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(serve())
