"""A worker's two sides of moving blocks, put together: what it gives to peers, what it brings from them."""

import asyncio
import contextlib
import os
from importlib.util import find_spec
from typing import Annotated, Literal

import grpc
import msgspec
from msgspec import Meta
from warmfleet_proto import transfer_pb2
from warmfleet_proto.channel import Tls, check_exposure, split_address
from warmfleet_proto.settings import ConfigError, read_key
from warmfleet_proto.tasks import cancelled
from warmfleet_proto.transfer_pb2_grpc import add_TransferServicer_to_server

from warmfleet_worker.engine.base import Engine
from warmfleet_worker.runner import Runner
from warmfleet_worker.source import Source
from warmfleet_worker.tiers.below import Below
from warmfleet_worker.transfer.bringer import Bringer
from warmfleet_worker.transfer.frames import DEVICE_PIECE_BYTES, PIECE_BYTES
from warmfleet_worker.transfer.grant import Gatekeeper
from warmfleet_worker.transfer.here import here
from warmfleet_worker.transfer.lane import Lanes
from warmfleet_worker.transfer.lane_source import LaneSource
from warmfleet_worker.transfer.lane_target import LaneTarget
from warmfleet_worker.transfer.leases import Leases
from warmfleet_worker.transfer.peers import Peers
from warmfleet_worker.transfer.puller import MAX_PULLS, Puller
from warmfleet_worker.transfer.service import TransferService
from warmfleet_worker.transfer.shared_memory import SharedMemory
from warmfleet_worker.transfer.shelf import PoolShelf
from warmfleet_worker.transfer.slabs import Slabs
from warmfleet_worker.transfer.supply import PeerSupply
from warmfleet_worker.transfer.tcp_source import TcpSource
from warmfleet_worker.transfer.tcp_target import TcpTarget
from warmfleet_worker.transfer.throttle import Throttle
from warmfleet_worker.transfer.tls import source_context, target_context
from warmfleet_worker.transfer.transport import Transport

DESCRIPTOR = transfer_pb2.DESCRIPTOR.services_by_name["Transfer"]

_QUIET_S = 1.0  # ten ticks of a router
_TICK_S = 0.25  # between looks at the leases' time
MOST_STREAMS = 10
_MOST_LANES = 8  # of a kind
_MOST_DEVICE_LANES = 4  # which take memory that the pool could have


class Transfer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Moving blocks between workers."""

    key_file: str = ""  # made by ``warmfleet key --worker NAME``; empty: this worker gives no blocks
    listen: str = ""  # HOST:PORT of the data port; empty: a free one beside the gRPC port
    transports: tuple[Literal["cuda", "nixl", "shm", "tcp"], ...] = ("cuda", "nixl", "shm", "tcp")  # offered
    # and taken, where they can be; the fastest of a pair is used
    streams: Annotated[int, Meta(ge=0, le=64)] = 0  # connections a pull; 0: one a core, at most ten
    memory_bytes: Annotated[int, Meta(ge=MAX_PULLS * PIECE_BYTES)] = 256 << 20  # of blocks on their way here
    bytes_per_s: Annotated[float, Meta(ge=0)] = 0.0  # that peers get at most, by tcp alone; 0: no bound


def check(config: Transfer, tls: Tls | None, insecure: bool) -> None:
    """Raises ConfigError."""
    if not config.transports:
        raise ConfigError("transfer.transports: blocks cannot move without any")
    if config.bytes_per_s and "tcp" not in config.transports:
        raise ConfigError("transfer.bytes_per_s: tcp alone keeps to it, and is not in transfer.transports")
    if config.listen:
        split_address(config.listen)
        check_exposure("transfer.listen", config.listen, tls, insecure)
        if not config.key_file or "tcp" not in config.transports:
            raise ConfigError("transfer.listen: opens only with transfer.key_file, for tcp")
    if config.key_file:
        read_key("transfer.key_file", config.key_file)


class Exchange:
    """``serve`` before the gRPC server starts, ``close`` when it has stopped."""

    def __init__(
        self, config: Transfer, name: str, runner: Runner, tls: Tls | None, below: Below | None = None
    ) -> None:
        """Raises ConfigError."""
        self._config = config
        self._runner = runner
        engine = runner.engine
        streams = config.streams or min(os.cpu_count() or 1, MOST_STREAMS)
        size = max(PIECE_BYTES if engine.cuda_pool is None else DEVICE_PIECE_BYTES, engine.block_bytes)
        slabs = Slabs(max(config.memory_bytes // size, MAX_PULLS), size, engine.host_memory)
        self._lanes = _lanes(config, engine, streams, tls is not None)
        targets: list[Transport] = [LaneTarget(each) for each in self._lanes]
        if "tcp" in config.transports:
            targets.append(TcpTarget(None if tls is None else target_context(tls), streams))
        if not targets:
            raise ConfigError(f"transfer.transports: {', '.join(config.transports)} cannot be had here")
        peers = Peers(tls)
        self.puller = Puller(name, runner, peers, targets, slabs)
        self.bringer = Bringer(name, runner, peers, below)
        runner.carriers[Source.PEER] = self.puller
        runner.scheduler.fetching.supplies.append(PeerSupply(self.puller.usual_s))
        self.leases = Leases(runner.scheduler.cache, below.host if below else None)
        self.shelf = PoolShelf(self.leases, runner.engine, runner.now, below)
        self.service: TransferService | None = None
        self.lane_sources: list[LaneSource] = []
        self._ticks: asyncio.Task[None] | None = None
        if config.key_file:
            key = read_key("transfer.key_file", config.key_file)
            gatekeeper = Gatekeeper(name, runner.presence.epoch, key)
            self.service = TransferService(runner, gatekeeper, self.leases, below.records if below else None)
            throttle = Throttle(config.bytes_per_s) if config.bytes_per_s else None
            context = None if tls is None else source_context(tls)
            self.source = TcpSource(self.shelf, context, throttle, engine.host_memory)
            if not throttle:
                self.lane_sources = [LaneSource(self.shelf, each, _most(each)) for each in self._lanes]

    @property
    def gives(self) -> bool:
        """Whether peers may pull blocks from here."""
        return self.service is not None

    def serve(self, server: grpc.aio.Server, host: str) -> None:
        """``host`` of the gRPC server. Raises ConfigError when the data port cannot be had."""
        if self.service is None:
            return
        if "tcp" in self._config.transports:
            self.service.offers.append(self._serve_tcp(host))
        for source in self.lane_sources:
            self.service.offers.append(_serve_lanes(source, host))
        add_TransferServicer_to_server(self.service, server)  # type: ignore[no-untyped-call]
        self._ticks = asyncio.create_task(self._expire(self.service))

    async def emptied(self, within_s: float) -> None:
        """Waits until no peer has taken blocks from here for a while. A router that watches this worker drain
        has them brought to where they will be asked for."""
        if self.service is None or not self._runner.listeners or not len(self._runner.presence):
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                lent = -1
                while lent != self.service.lent or len(self.leases):
                    lent = self.service.lent
                    await asyncio.sleep(_QUIET_S)

    async def close(self) -> None:
        await self.puller.close()
        if self._ticks is not None:
            await cancelled(self._ticks)
            for source in (self.source, *self.lane_sources):
                await asyncio.to_thread(source.close)
        for lanes in self._lanes:
            lanes.close()

    def _serve_tcp(self, host: str) -> transfer_pb2.Offer:
        address = self._config.listen or f"[{host}]:0"
        where, wanted = split_address(address)
        try:
            port = self.source.listen(where, wanted)
        except OSError as error:
            raise ConfigError(f"transfer.listen: cannot listen on {address}: {error.strerror}") from None
        return transfer_pb2.Offer(transport="tcp", port=port)

    async def _expire(self, service: TransferService) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            service.expire()


def _serve_lanes(source: LaneSource, host: str) -> transfer_pb2.Offer:
    """``host`` of the gRPC server. Within the host where its lanes reach no further."""
    if source.leaves_the_host:
        return transfer_pb2.Offer(transport=source.name, port=source.listen(host, 0))
    return transfer_pb2.Offer(transport=source.name, host=here(), socket=source.listen_here())


def _most(lanes: Lanes) -> int:
    return _MOST_DEVICE_LANES if lanes.name == "cuda" else _MOST_LANES


def _lanes(config: Transfer, engine: Engine, streams: int, secret: bool) -> list[Lanes]:
    """The kinds that this worker can have; ``secret``: nothing may leave the host in the clear."""
    made: list[Lanes] = []
    if "cuda" in config.transports and engine.cuda_pool is not None:
        from warmfleet_worker.transfer.device_lanes import DeviceLanes

        made.append(DeviceLanes.of_cuda(engine.cuda_pool))
    if "nixl" in config.transports and not secret and find_spec("nixl"):
        from warmfleet_worker.transfer.nixl_lanes import NixlLanes

        made.append(NixlLanes(engine, streams))
    if "shm" in config.transports:
        made.append(SharedMemory(engine, streams))
    return made
