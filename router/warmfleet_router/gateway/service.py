"""One gateway, put together: its routes, its streams to workers, its heartbeat. The router is given."""

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Mapping, Sequence

from aiohttp import web
from warmfleet_proto import log
from warmfleet_proto.channel import Tls
from warmfleet_proto.errors import WarmfleetError
from warmfleet_proto.limits import BOOKING_HEARTBEAT_S
from warmfleet_proto.router_pb2 import HeartbeatRequest, ListWorkersRequest
from warmfleet_proto.tasks import cancelled

from warmfleet_router.backends.worker import WorkerPool
from warmfleet_router.client import Router
from warmfleet_router.gateway import intake
from warmfleet_router.gateway.aliases import ABSENT, Aliases, Setting
from warmfleet_router.gateway.api import Api
from warmfleet_router.gateway.catalogue import Catalogue
from warmfleet_router.gateway.dry_run import DryRun
from warmfleet_router.gateway.encoders import Encoders
from warmfleet_router.gateway.job import Preparer
from warmfleet_router.gateway.limits import Limits
from warmfleet_router.gateway.placing import Upstream
from warmfleet_router.gateway.relaying import Relays
from warmfleet_router.gateway.reports import Reports
from warmfleet_router.gateway.retries import RetryBudget
from warmfleet_router.metrics import Metrics

_log = logging.getLogger(__name__)

_JOINING_S = 0.1  # between looks for a first worker


class Gateway:
    """Between ``start`` and ``close`` its ``routes`` answer. The caller owns ``router`` and ``encoders``."""

    def __init__(
        self,
        router: Router,
        encoders: Encoders,
        served_name: str,
        keys: Sequence[intake.Key],
        limits: Limits,
        metrics: Metrics,
        tls: Tls | None = None,
        server_keys: Mapping[str, str] | None = None,
        aliases: Setting | None = None,
    ) -> None:
        gateway_id = f"gateway-{secrets.token_hex(8)}"
        self._catalogue = Catalogue(served_name, encoders.vocabulary, encoders.vocab_sizes())
        self._upstream = Upstream(
            gateway_id, router, WorkerPool(gateway_id, tls), Reports(router), RetryBudget(), time.monotonic
        )
        self._aliases = Aliases(aliases or {})
        preparer = Preparer(encoders, self._catalogue)
        tenants = self.tenants = intake.Tenants(keys, limits.tenant_in_flight, metrics.limited)
        self.relays = Relays(
            self._upstream, {} if server_keys is None else server_keys, encoders.relayed, self._aliases
        )
        self._api = Api(
            self._upstream,
            preparer,
            self._catalogue,
            tenants,
            limits,
            metrics,
            self.relays,
            self._aliases,
        )
        self.dry_run = DryRun(preparer, tenants, limits, self._aliases, self._catalogue, self.relays)
        self._heart: asyncio.Task[None] | None = None
        self._beaten = asyncio.Event()

    def routes(self) -> list[web.RouteDef]:
        return self._api.routes()

    async def start(self) -> None:
        """It knows its fleet then, unless the router cannot be asked."""
        self._heart = asyncio.create_task(self._beat())
        await self._beaten.wait()

    def drain(self) -> None:
        """Lets its health say that it is going."""
        self._api.draining = True

    async def close(self) -> None:
        """To be called when the last request has ended."""
        if self._heart is not None:
            await cancelled(self._heart)
        await self._upstream.workers.close()
        await self.relays.close()
        await self._upstream.reports.close()

    def _heartbeat(self) -> HeartbeatRequest:
        return HeartbeatRequest(gateway_id=self._upstream.gateway_id, live=self._upstream.reports.live)

    async def _beat(self) -> None:
        """Keeps this gateway's bookings alive, and hears of the fleet's workers."""
        reachable = True
        while True:
            self._upstream.stale.clear()
            try:
                await self._upstream.router.heartbeat(self._heartbeat())
                workers = await self._upstream.router.list_workers(ListWorkersRequest())
                for model, why in self._catalogue.update(workers).items():
                    log.event(_log, "model refused", level=logging.WARNING, model=model, why=why)
                self.relays.update(workers)
                self._aliases.update(workers)
                self._api.lacks = "" if any(w.state not in ABSENT for w in workers.workers) else "a worker"
                reachable = True
            except WarmfleetError as error:
                if reachable:
                    log.event(_log, "router_unreachable", level=logging.WARNING, why=str(error))
                else:  # one answer may be late
                    self._api.lacks = "a router"
                reachable = False
            except Exception:
                _log.exception("a heartbeat failed")  # ours to mend; without the next one all bookings end
            finally:
                self._beaten.set()
            ready = self._catalogue.ready or self.relays.models()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(BOOKING_HEARTBEAT_S if ready else _JOINING_S):
                    await self._upstream.stale.wait()
