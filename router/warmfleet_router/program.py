"""What the router and the gateway share as programs: options, the parts of a front end, an orderly end."""

import argparse
import asyncio
import json
import signal
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import TypeVar

import uvloop
from aiohttp import web
from warmfleet_proto import log
from warmfleet_proto.channel import is_loopback
from warmfleet_proto.command import given
from warmfleet_proto.settings import ConfigError, load, to_toml
from warmfleet_proto.tasks import cancelled

from warmfleet_router.client import Router
from warmfleet_router.config import Frontend, GatewayConfig, RouterConfig, check, https_context
from warmfleet_router.discovery import Discovery
from warmfleet_router.garbage import collecting
from warmfleet_router.gateway.encoders import Encoders
from warmfleet_router.gateway.http import Site, application
from warmfleet_router.gateway.service import Gateway
from warmfleet_router.local import demo
from warmfleet_router.metrics import Metrics, watch_loop
from warmfleet_router.prompt import tokenizer
from warmfleet_router.prompt.encoder import PromptEncoder
from warmfleet_router.prompt.tokenizer import Tokenizer

C = TypeVar("C", RouterConfig, GatewayConfig)
Addresses = dict[str, str]  # what is listened on: "http", "grpc", ... -> HOST:PORT
Pages = Callable[[Gateway], Sequence[web.RouteDef]]  # what operators are shown of it


def run(
    kind: type[C],
    arguments: argparse.Namespace,
    flags: Sequence[str],
    running: Callable[[C], AbstractAsyncContextManager[Addresses]],
    several: Callable[[C], int | None] = lambda config: None,
) -> int:
    """The exit status. ``several`` may run other processes instead. Raises ConfigError."""
    config = load(kind, arguments.config, given(arguments, flags))
    if arguments.print_config:
        print(to_toml(config), end="")
        return 0
    log.setup(config.log_level)
    check(config)
    status = several(config)
    return uvloop.run(_until_stopped(running(config))) if status is None else status


async def _until_stopped(running: AbstractAsyncContextManager[Addresses]) -> int:
    """Says on stdout when it is ready; SIGTERM and SIGINT end it in order, a second one at once."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGTERM, signal.SIGINT)
    for number in numbers:
        loop.add_signal_handler(number, stop.set)
    async with running as addresses:
        garbage = asyncio.create_task(collecting())
        await asyncio.sleep(0)  # the collector's first look, a long one, comes before the first request
        print(json.dumps({"ready": True, **addresses}), flush=True)
        await stop.wait()
        await cancelled(garbage)
        for number in numbers:
            loop.remove_signal_handler(number)
    return 0


@asynccontextmanager
async def front(
    config: Frontend,
    router: Router,
    metrics: Metrics,
    apart: str,
    shown: Pages,
    server_keys: Mapping[str, str],
) -> AsyncIterator[Addresses]:
    """The gateway's HTTP while the block lasts; leaving it drains. ``shown`` (operators' pages) has the
    address ``apart``, or shares a loopback one. ``server_keys`` are API keys by URL, and may change.
    Raises ConfigError."""
    encoders = _encoders(config)
    gateway = Gateway(
        router,
        encoders,
        config.served_name,
        config.tenants,
        config.limits,
        metrics,
        config.tls,
        server_keys=server_keys,
        aliases=config.aliases,
    )
    async with AsyncExitStack() as stack:
        for made in encoders.each():
            stack.callback(made.close)
        stack.push_async_callback(gateway.close)
        addresses = {}
        app = application()
        app.add_routes(gateway.routes())
        if apart:
            own = application()
            own.add_routes(shown(gateway))
            addresses["admin"] = await _open(stack, Site(own, apart))
        elif is_loopback(config.http):
            app.add_routes(shown(gateway))
        await gateway.start()
        lag = asyncio.create_task(watch_loop(metrics))
        stack.push_async_callback(cancelled, lag)
        shared = isinstance(config, GatewayConfig) and config.reuse_port
        site = Site(app, config.http, https_context(config.https), config.limits.drain_s, shared)
        addresses["http"] = await _open(stack, site)
        if isinstance(config, RouterConfig) and config.picker:
            addresses["picker"] = await stack.enter_async_context(_picker(config, gateway))
        stack.callback(gateway.drain)
        yield addresses


def _encoders(config: Frontend) -> Encoders:
    """Raises ConfigError."""
    loaded = {model: tokenizer.load(path) for model, path in config.tokenizers.items()}
    return Encoders(
        PromptEncoder(_own_tokenizer(config)),
        bool(config.model),
        {model: PromptEncoder(known) for model, known in loaded.items()},
        {model: PromptEncoder(known, typed_specials=True) for model, known in loaded.items()},
    )


def _own_tokenizer(config: Frontend) -> Tokenizer:
    """The tokenizer of our own workers' model. Servers that are not ours need none; and a gateway of its own
    does not know yet whose workers there are. Raises ConfigError."""
    try:
        return tokenizer.load(config.model or demo.weights())
    except ConfigError:
        served = config.backends or config.tokenizers
        found = not isinstance(config, RouterConfig) or config.discovery != Discovery()
        if config.model or not (served or found):
            raise
        return tokenizer.of_no_model()


def _picker(config: RouterConfig, gateway: Gateway) -> AbstractAsyncContextManager[str]:
    from warmfleet_router.picker.service import serving  # its stubs are an extra

    body_bytes = config.limits.body_bytes
    listed = next(iter(config.backends), None)  # all have the same key
    return serving(config.picker, config.tls, gateway.relays, gateway.tenants, body_bytes, listed)


async def _open(stack: AsyncExitStack, site: Site) -> str:
    address = await site.start()
    stack.push_async_callback(site.close)
    return address
