"""A gateway of its own: the OpenAI API here, placements from a router over gRPC."""

import argparse
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from warmfleet_proto import channel
from warmfleet_proto.command import Command
from warmfleet_proto.limits import ROUTE_MESSAGE_BYTES

from warmfleet_router import program
from warmfleet_router.client import RemoteRouter
from warmfleet_router.config import GatewayConfig
from warmfleet_router.gateway import processes
from warmfleet_router.metrics import Metrics
from warmfleet_router.program import Addresses
from warmfleet_router.servers.backend import keys_of

_FLAGS = {
    "router": "HOST:PORT of the router's gRPC server",
    "http": "HOST:PORT of the OpenAI API; port 0 takes a free one",
    "model": "Hugging Face folder or GGUF file with the workers' tokenizer; default: the demo model's",
    "served_name": "what clients call the model; default: whatever the workers do",
    "processes": "gateway processes that share the http address; default: 1",
    "log_level": "debug, info, warning or error",
}

_EPILOG = """\
Token streams come from the workers directly: it must reach them at the addresses the router knows.
When it is ready it prints one line of JSON on stdout, and logs to stderr:
  {"ready": true, "http": "HOST:PORT"}
SIGTERM or SIGINT drains it: no new connections, open requests may end within limits.drain_s; a
second one ends it at once.

examples:
  warmfleet gateway --router 127.0.0.1:8001 --http 127.0.0.1:8080
  warmfleet gateway --config gateway.toml --print-config
"""


@asynccontextmanager
async def running(config: GatewayConfig) -> AsyncIterator[Addresses]:
    """The gateway while the block lasts, with the address that it has got. Raises ConfigError."""
    metrics = Metrics()
    async with channel.connect(config.router, config.tls, message_bytes=ROUTE_MESSAGE_BYTES) as to_router:
        front = program.front(
            config,
            RemoteRouter(to_router),
            metrics,
            config.metrics,
            lambda _: metrics.routes(),
            keys_of(config.backends),
        )
        async with front as addresses:
            yield addresses


def _configure(parser: argparse.ArgumentParser) -> None:
    program.add_options(parser, _FLAGS, _EPILOG)


def _run(arguments: argparse.Namespace) -> int:
    def several(config: GatewayConfig) -> int | None:
        if config.processes == 1:
            return None
        given = program.settings(arguments, list(_FLAGS))
        flags = [part for setting in given for part in ("--set", setting)]
        named = ["--config", arguments.config] if arguments.config else []
        return processes.run(config, processes.command([*named, *flags]))

    return program.run(GatewayConfig, arguments, list(_FLAGS), running, several)


command = Command("Run a gateway of its own in front of a router.", _configure, _run)
