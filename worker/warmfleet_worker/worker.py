"""One worker, put together: engine, scheduler, loop, gRPC and HTTP."""

import asyncio
import secrets

import grpc
from aiohttp import web
from warmfleet_proto import worker_pb2
from warmfleet_proto.channel import Health, bind, server, split_address
from warmfleet_proto.settings import ConfigError
from warmfleet_proto.tasks import cancelled
from warmfleet_proto.worker_pb2_grpc import add_WorkerServicer_to_server

from warmfleet_worker.admission import Limits
from warmfleet_worker.config import Config
from warmfleet_worker.engine.base import Engine
from warmfleet_worker.events import PresenceLog
from warmfleet_worker.http import application, listen
from warmfleet_worker.metrics import Metrics
from warmfleet_worker.openai_face import OpenAiFace
from warmfleet_worker.runner import Runner
from warmfleet_worker.scheduler import Scheduler
from warmfleet_worker.service import WorkerService
from warmfleet_worker.tiers.factory import make_below
from warmfleet_worker.transfer.exchange import DESCRIPTOR, Exchange

_CLOSE_GRACE_S = 1.0
_SETTLE_S = 5.0  # for what should be on disk when the worker is started again


class Worker:
    """``start``, ``drain``, ``close``. ``loop`` ends by itself only when the worker cannot go on."""

    def __init__(self, config: Config, engine: Engine) -> None:
        self.config = config
        context = min(engine.max_context, engine.total_blocks * engine.block_size)
        limits = Limits(
            engine.block_size, context, config.max_running, config.max_waiting, config.chunk_tokens
        )
        self.scheduler = Scheduler(limits, engine.total_blocks)
        self.presence = PresenceLog(epoch=secrets.randbits(64) or 1)
        self.runner = Runner(engine, self.scheduler, self.presence)
        self.below = make_below(config, self.runner)
        if config.eviction == "cost":
            self._evict_by_cost(engine.block_size)
        self.exchange = Exchange(config.transfer, config.name, self.runner, config.tls, self.below)
        model = config.served_name or engine.model
        self.service = WorkerService(
            config.name, model, self.runner, self.drain, self.exchange.bringer.bring, self.exchange.gives
        )
        face = OpenAiFace(model, self.runner).routes() if config.engine == "sim" else []
        metrics = Metrics(self.runner, self.exchange, self.below)
        self._application = application(self.runner, metrics, *face)
        self.grpc_address = self.http_address = ""
        self.loop: asyncio.Task[None]
        self._server: grpc.aio.Server
        self._health: Health
        self._web: web.AppRunner

    def _evict_by_cost(self, block_size: int) -> None:
        prefill = self.scheduler.fetching.pace.prefill

        def cost(depth: int) -> float:
            return prefill.block_s(depth, block_size)

        self.scheduler.cache.cost = cost
        if self.below is not None:
            self.below.host.cache.cost = cost

    async def start(self) -> None:
        """Raises ConfigError when a port cannot be had."""
        services = [worker_pb2.DESCRIPTOR.services_by_name["Worker"], DESCRIPTOR]
        self._server, self._health = server(services[: 1 + self.exchange.gives])
        add_WorkerServicer_to_server(self.service, self._server)  # type: ignore[no-untyped-call]
        host, _ = split_address(self.config.listen)
        port = bind(self._server, self.config.listen, self.config.tls)
        self.grpc_address = f"{host}:{port}"
        self.exchange.serve(self._server, host)
        host, port = split_address(self.config.http)
        try:
            self._web, port = await listen(self._application, host, port)
        except OSError as error:
            raise ConfigError(f"cannot listen on {self.config.http}: {error.strerror}") from None
        self.http_address = f"{host}:{port}"
        await self.runner.warm_up()
        if self.below is not None:
            self.below.start()
        self.loop = asyncio.create_task(self.runner.run())
        await self._server.start()
        await self._health.set_serving(True)

    async def drain(self, deadline_s: float) -> int:
        """How many requests were left."""
        await self._health.set_serving(False)
        unfinished = await self.runner.drain(deadline_s)
        await self.exchange.emptied(self.runner.leaves_at - self.runner.now())
        if self.below is not None:
            await self.below.settle(min(deadline_s, _SETTLE_S))
        return unfinished

    async def close(self) -> None:
        await cancelled(self.loop)
        self.service.close()
        await self._server.stop(_CLOSE_GRACE_S)
        await self.exchange.close()
        await self._web.cleanup()
        if self.below is not None:
            await asyncio.to_thread(self.below.close)
