"""The router program: where placements, presence, books and an embedded gateway are joined."""

import argparse
import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from functools import partial

import grpc
import msgspec
from warmfleet_proto import channel, router_pb2, router_pb2_grpc
from warmfleet_proto.command import Command, add_options
from warmfleet_proto.limits import ROUTE_MESSAGE_BYTES
from warmfleet_proto.log import event
from warmfleet_proto.settings import read_key

from warmfleet_router import program
from warmfleet_router.admin import Admin, Setting
from warmfleet_router.client import LocalRouter, Router
from warmfleet_router.config import RouterConfig
from warmfleet_router.core import RouterCore
from warmfleet_router.courier import Courier
from warmfleet_router.decisions.recorder import Record, RecordingCore
from warmfleet_router.decisions.writer import Writer
from warmfleet_router.discovery import Discovery, Found
from warmfleet_router.discovery.discoverer import Discoverer, sources
from warmfleet_router.gateway.aliases import shares
from warmfleet_router.grant import Granter
from warmfleet_router.index import index
from warmfleet_router.metrics import Metrics
from warmfleet_router.picker.plain import Plain
from warmfleet_router.program import Addresses
from warmfleet_router.servers.backend import keys_of
from warmfleet_router.servers.watcher import ServerWatcher
from warmfleet_router.service import RouterService
from warmfleet_router.watcher import Watcher

_FLAGS = {
    "http": "HOST:PORT of the OpenAI API and the admin page; port 0 takes a free one",
    "listen": "HOST:PORT of the gRPC server for gateways of their own",
    "model": "Hugging Face folder or GGUF file with the workers' tokenizer; default: the demo model's",
    "served_name": "what clients call the model; default: whatever the workers do",
    "log_level": "debug, info, warning or error",
}

_EPILOG = """\
When it is ready it prints one line of JSON on stdout, and logs to stderr:
  {"ready": true, "http": "HOST:PORT", "grpc": "HOST:PORT"}
Workers may come and go at the addresses it is given. SIGTERM or SIGINT drains it: no new connections,
open requests may end within limits.drain_s; a second one ends it at once.

examples:
  warmfleet router --set 'workers=["127.0.0.1:50061", "127.0.0.1:50062"]' --model ./SmolLM2-135M-Instruct
  warmfleet router --config router.toml --set routing.policy=round_robin
  warmfleet router --config router.toml --print-config
"""

SETTLE_S = 5.0  # snapshots of all workers within reach, before it says ready
_STOP_S = 1.0  # for the last words of gateways elsewhere
_IN_PYTHON = "no C compiler when warmfleet was installed: placements take milliseconds and far more memory"
_log = logging.getLogger(__name__)


@asynccontextmanager
async def running(config: RouterConfig) -> AsyncIterator[Addresses]:
    """The router while the block lasts, with the addresses that it has got. Raises ConfigError."""
    clock = time.monotonic
    if not index.native:
        event(_log, "index_in_python", level=logging.WARNING, why=_IN_PYTHON)
    async with AsyncExitStack() as stack:
        core = _core(_without_key(config), stack)
        granter = None
        if config.fleet_key_file:
            granter = core.granter = Granter(read_key("fleet_key_file", config.fleet_key_file))
        router = LocalRouter(core, clock)
        metrics = Metrics()
        metrics.watch(core, clock)
        connect = partial(channel.connect, tls=config.tls)
        server_keys: dict[str, str] = {}
        following = _following(config, core, clock, connect, server_keys)
        discoverer = await stack.enter_async_context(following)
        metrics.watch_discovery(discoverer.views)
        if granter is not None:
            await stack.enter_async_context(Courier(core, granter, clock, connect))
        grpc_address = await stack.enter_async_context(_service(config, router))
        shown = Setting(discoverer.views, shares(config.aliases))
        front = program.front(
            config,
            router,
            metrics,
            config.admin,
            lambda gateway: [*Admin(core, clock, gateway.dry_run.asks, shown).routes(), *metrics.routes()],
            server_keys,
        )
        addresses = await stack.enter_async_context(front)
        yield {**addresses, "grpc": grpc_address}


@asynccontextmanager
async def _following(
    config: RouterConfig,
    core: RouterCore,
    clock: Callable[[], float],
    connect: Callable[[str], grpc.aio.Channel],
    server_keys: dict[str, str],
) -> AsyncIterator[Discoverer]:
    """Follows the workers and servers that are listed or found. Begins when they have told what they hold.

    ``server_keys`` is kept up: the API keys of servers, by URL.
    """
    plain = Plain() if config.picker and config.discovery != Discovery() else None
    listed = Found(tuple(config.workers), tuple(config.backends))
    async with ServerWatcher(core, clock) as servers, Watcher(core, clock, connect) as workers:

        async def apply(found: Found) -> None:
            backends = found.backends if plain is None else plain.of(found.backends)
            keys = keys_of(backends)
            server_keys.update(keys)
            await workers.watch(found.workers)
            await servers.watch(backends)
            for url in server_keys.keys() - keys.keys():  # until now requests went there
                del server_keys[url]

        async with Discoverer(listed, sources(config.discovery), apply) as discoverer:
            # A replica that knew nothing would scatter prefixes.
            await asyncio.gather(workers.settled(SETTLE_S), servers.settled(SETTLE_S))
            yield discoverer


def _without_key(config: RouterConfig) -> RouterConfig:
    """No worker gives blocks without grants: none are pulled then."""
    if config.fleet_key_file:
        return config
    routing = msgspec.structs.replace(config.routing, pulls=False, replicate=False)
    return msgspec.structs.replace(config, routing=routing)


def _core(config: RouterConfig, stack: AsyncExitStack) -> RouterCore:
    """It writes down what it is told and decides where the configuration asks for a decision log."""
    seed = secrets.randbits(63)
    if not config.decision_log:
        return RouterCore(config.routing, seed)
    writer = Writer(config.decision_log, config.decision_log_files)
    stack.callback(writer.close)
    run = datetime.now(UTC).isoformat(timespec="seconds")
    return RecordingCore(config.routing, seed, Record(writer.write, run, config.decision_log_mib << 20))


@asynccontextmanager
async def _service(config: RouterConfig, router: Router) -> AsyncIterator[str]:
    """The Router service for gateways elsewhere; the address that it has got."""
    services = [router_pb2.DESCRIPTOR.services_by_name["Router"]]
    server, health = channel.server(services, message_bytes=ROUTE_MESSAGE_BYTES)
    router_pb2_grpc.add_RouterServicer_to_server(RouterService(router), server)  # type: ignore[no-untyped-call]
    port = channel.bind(server, config.listen, config.tls)
    await server.start()
    await health.set_serving(True)
    try:
        yield f"{config.listen.rpartition(':')[0]}:{port}"
    finally:
        await health.set_serving(False)
        await server.stop(_STOP_S)


def _configure(parser: argparse.ArgumentParser) -> None:
    add_options(parser, _FLAGS, _EPILOG, "limits.drain_s=5", "TLS or API keys")


def _run(arguments: argparse.Namespace) -> int:
    return program.run(RouterConfig, arguments, list(_FLAGS), running)


command = Command("Run the router and its OpenAI-compatible gateway.", _configure, _run)
