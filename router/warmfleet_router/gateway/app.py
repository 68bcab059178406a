"""A gateway of its own: the OpenAI API here, placements from a router over gRPC."""

import argparse
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from warmfleet_proto import channel
from warmfleet_proto.command import Command, add_options, given
from warmfleet_proto.limits import ROUTE_MESSAGE_BYTES

from warmfleet_router import program
from warmfleet_router.client import RemoteRouter, Router
from warmfleet_router.config import GatewayConfig
from warmfleet_router.gateway import processes
from warmfleet_router.metrics import Metrics
from warmfleet_router.program import Addresses
from warmfleet_router.servers.backend import keys_of
from warmfleet_router.several import Named, SeveralRouters

_FLAGS = {
    "router": "HOST:PORT of a router's gRPC server; once for each router over the same workers",
    "http": "HOST:PORT of the OpenAI API; port 0 takes a free one",
    "model": "Hugging Face folder or GGUF file with the workers' tokenizer; default: the demo model's",
    "served_name": "what clients call the model; default: whatever the workers do",
    "processes": "gateway processes that share the http address; default: 1",
    "log_level": "debug, info, warning or error",
}

_EPILOG = """\
Tokens come directly from the workers, so the gateway must reach them at the addresses the router knows.
A router does not tell the API keys of servers: list those that want one in the gateway's own `backends`.
When it is ready it prints one line of JSON on stdout, and logs to stderr:
  {"ready": true, "http": "HOST:PORT"}
SIGTERM or SIGINT drains it: no new connections, open requests may end within limits.drain_s; a
second one ends it at once.

examples:
  warmfleet gateway --router 127.0.0.1:8001 --http 127.0.0.1:8080
  warmfleet gateway --router 10.0.0.1:8001 --router 10.0.0.2:8001 --processes 4
  warmfleet gateway --config gateway.toml --print-config
"""


@asynccontextmanager
async def running(config: GatewayConfig) -> AsyncIterator[Addresses]:
    """The gateway while the block lasts, with the address that it has got. Raises ConfigError."""
    metrics = Metrics()
    async with AsyncExitStack() as stack:
        router = await _router(config, metrics, stack)
        front = program.front(
            config, router, metrics, config.metrics, lambda _: metrics.routes(), keys_of(config.backends)
        )
        yield await stack.enter_async_context(front)


async def _router(config: GatewayConfig, metrics: Metrics, stack: AsyncExitStack) -> Router:
    found = []
    for address in config.routers:
        made = channel.connect(address, config.tls, message_bytes=ROUTE_MESSAGE_BYTES)
        found.append(Named(address, RemoteRouter(await stack.enter_async_context(made))))
    if len(found) == 1:
        return found[0].router
    several = SeveralRouters(found)
    metrics.watch_routers(several.answering)
    return several


def _configure(parser: argparse.ArgumentParser) -> None:
    kinds: dict[str, Any] = {"router": {"action": "append"}, "processes": {"type": int}}
    add_options(parser, _FLAGS, _EPILOG, "limits.drain_s=5", "TLS or API keys", **kinds)


def _run(arguments: argparse.Namespace) -> int:
    def several(config: GatewayConfig) -> int | None:
        if config.processes == 1:
            return None
        flags = [part for setting in given(arguments, _FLAGS) for part in ("--set", setting)]
        named = ["--config", arguments.config] if arguments.config else []
        return processes.run(config, processes.command([*named, *flags]))

    return program.run(GatewayConfig, arguments, list(_FLAGS), running, several)


command = Command("Run a gateway of its own in front of a router.", _configure, _run)
