"""Keeps a RouterCore true to the servers that are not ours: one task each. They come and go.

A server is asked who it is, then for its load twice a second; its KV events, where it has them, are
followed as long as it answers. One that stops answering begins a new incarnation when it is back.
"""

import asyncio
import contextlib
import itertools
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from typing import NamedTuple, Self

import aiohttp
from warmfleet_proto import log
from warmfleet_proto import worker_pb2 as pb
from warmfleet_proto.errors import WarmfleetError, WorkerLost
from warmfleet_proto.tasks import cancelled

from warmfleet_router.core import RouterCore
from warmfleet_router.events.mirror import MAX_NAMES
from warmfleet_router.index.cursor import Instruction
from warmfleet_router.servers.backend import Backend
from warmfleet_router.servers.discovery import Names, Probe

_log = logging.getLogger(__name__)

POLL_S = 0.5
MODEL_POLLS = 10  # every so many polls it is asked for its models again
POLLS = 4  # that may fail in a row before a server counts as lost
BUSY_S = 60.0  # a server that computes for us may answer nothing else meanwhile
FIRST_WAIT_S = 0.1  # before another attempt; doubles
LONGEST_WAIT_S = 1.0
EVENTS_AGAIN_S = 10.0  # after they could not be followed
LEAST_NAMES = 16_384  # of blocks, that are remembered for one server


def names_for(total_blocks: int) -> int:
    """How many blocks of an engine's are remembered by its own names for them. ``total_blocks`` is what its
    cache has room for; 0: it does not say."""
    return min(max(2 * total_blocks or MAX_NAMES, LEAST_NAMES), 4 * MAX_NAMES)


class _OtherSize(WorkerLost):
    """Its blocks have ``tokens`` tokens: it begins anew with that."""

    def __init__(self, tokens: int, told: int) -> None:
        super().__init__(f"its events tell of blocks of {tokens} tokens, not of {told}")
        self.tokens = tokens


class _Followed(NamedTuple):
    task: asyncio.Task[None]
    settled: asyncio.Event  # where its events can be asked for: all that it remembers has been heard


def _session() -> aiohttp.ClientSession:
    """Without a bound on its connections: a hundred servers that hang would keep all others unheard."""
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))


class ServerWatcher:
    """``async with``: follows the servers that ``watch`` names. ``clock`` is monotonic seconds."""

    def __init__(self, core: RouterCore, clock: Callable[[], float]) -> None:
        self._core = core
        self._clock = clock
        self._followed: dict[Backend, _Followed] = {}
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        return self

    async def watch(self, backends: Collection[Backend]) -> None:
        """These, and no others any more. One that is described in another way is another one."""
        backends = dict.fromkeys(rank for backend in backends for rank in backend.each_rank())
        gone = [backend for backend in self._followed if backend not in backends]
        await cancelled(*(self._followed.pop(backend).task for backend in gone))
        for backend in gone:
            self._core.roster.remove(backend.address, self._clock())
        for backend in backends:
            if backend not in self._followed:
                self._session = self._session or _session()
                self._core.roster.add(backend.address)
                settled = asyncio.Event()
                follow = self._follow(backend, Probe(backend, self._session), settled)
                task = asyncio.create_task(follow, name=f"watch {backend.address}")
                self._followed[backend] = _Followed(task, settled)

    async def settled(self, within_s: float) -> None:
        """Waits until servers have told all that they remember of their events, or are known to be out of
        reach. Those that cannot be asked are not waited for."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                for backend, followed in list(self._followed.items()):
                    if backend.replay:
                        await followed.settled.wait()

    async def __aexit__(self, *_: object) -> None:
        await cancelled(*(followed.task for followed in self._followed.values()))
        self._followed.clear()
        if self._session is not None:
            await self._session.close()

    async def _follow(self, backend: Backend, probe: Probe, settled: asyncio.Event) -> None:
        wait, known, block_size = FIRST_WAIT_S, "", 0
        while True:
            try:
                status = await probe.status(secrets.randbits(64) or 1)
                status.block_size, block_size = block_size or status.block_size, 0
                self._core.roster.joined(backend.address, status, self._clock())
                log.event(
                    _log, "server joined", address=backend.address, model=status.model, engine=backend.kind
                )
                wait, known = FIRST_WAIT_S, ""
                async with self._presence(backend, status, settled):
                    await self._poll(backend, probe, status)
            except WarmfleetError as error:
                block_size = error.tokens if isinstance(error, _OtherSize) else 0
                if (why := str(error)) != known:
                    known = why
                    log.event(_log, "server lost", level=logging.WARNING, address=backend.address, why=why)
            except Exception:
                _log.exception("following %s failed", backend.address)  # ours to mend; it is tried again
            finally:
                self._core.roster.broken(backend.address, self._clock())
            settled.set()
            await asyncio.sleep(wait)
            wait = min(2 * wait, LONGEST_WAIT_S)

    async def _poll(self, backend: Backend, probe: Probe, status: pb.StatusResponse) -> None:
        """Returns only by an error."""
        failures, answered, load = 0, self._clock(), pb.WorkerLoad()
        for poll in itertools.count(1):
            names = None
            try:
                if not poll % MODEL_POLLS:
                    names = await probe.names(status.model)
                figures = await probe.figures()
                failures, answered = 0, self._clock()
                load = pb.WorkerLoad(running=figures.running, waiting=figures.waiting)
            except WorkerLost:
                busy = probe.silent and self._clock() - answered < BUSY_S and self._computes(backend)
                failures += not busy
                if failures >= POLLS:
                    raise
            if names is not None:  # no failure to answer, which a few times in a row would be put up with
                self._named(backend, status, names)
            if not failures:
                message = pb.WatchKvResponse(epoch=status.epoch, load=load)
                for _ in self._core.roster.ingest(backend.address, message, self._clock()):
                    pass
            self._check_size(backend, status)
            await asyncio.sleep(POLL_S)

    def _check_size(self, backend: Backend, status: pb.StatusResponse) -> None:
        """That of its blocks: some do not tell it in their metrics, or another one. Raises WorkerLost."""
        worker = self._core.roster.fleet.workers.get(backend.address)
        if worker is not None and worker.mirror is not None and worker.mirror.other_size:
            raise _OtherSize(worker.mirror.other_size, status.block_size)

    def _named(self, backend: Backend, status: pb.StatusResponse, names: Names) -> None:
        """Adapters are loaded and let go while it runs. Raises WorkerLost for another model."""
        if names.model != status.model:
            raise WorkerLost(f"it serves {names.model!r} now")
        if [*names.others] != [*status.models] or [*names.adapters] != [*status.adapters]:
            status.models[:], status.adapters[:] = names.others, names.adapters
            self._core.roster.joined(backend.address, status, self._clock())
            log.event(_log, "models changed", address=backend.address, models=[*names.others])

    def _computes(self, backend: Backend) -> bool:
        """Whether the server computes for requests of ours."""
        worker = self._core.roster.fleet.workers.get(backend.address)
        return worker is not None and worker.booked.slots > 0

    @asynccontextmanager
    async def _presence(
        self, backend: Backend, status: pb.StatusResponse, settled: asyncio.Event
    ) -> AsyncIterator[None]:
        """Its KV events are followed while the block lasts."""
        if not backend.events:
            yield
            return
        events = self._events(backend, status, settled)
        task = asyncio.create_task(events, name=f"events of {backend.address}")
        try:
            yield
        finally:
            await cancelled(task)

    async def _events(self, backend: Backend, status: pb.StatusResponse, settled: asyncio.Event) -> None:
        """Where they cannot be followed any more, nothing is known, and it is tried again."""
        # pyzmq is there only where events are configured.
        from warmfleet_router.events import sglang, vllm
        from warmfleet_router.events.follower import Follower
        from warmfleet_router.events.mirror import Mirror
        from warmfleet_router.events.subscriber import Subscriber

        def sink(instruction: Instruction) -> None:
            self._core.roster.told(backend.address, instruction)

        mirror = Mirror(status.model_fingerprint, status.block_size, names_for(status.total_blocks))
        decoder = vllm.Decoder if backend.kind == "vllm" else sglang.Decoder
        counters, can_replay, known = self._core.counters, bool(backend.replay), ""
        while True:
            self._core.roster.follow(backend.address, mirror)
            follower = Follower(decoder(), mirror, counters, can_replay, backend.rank)
            try:
                await Subscriber(
                    backend.events, backend.replay, follower, sink, self._clock, backend.address, settled.set
                ).run()
            except Exception as error:
                if (why := str(error)) != known:
                    known = why
                    log.event(_log, "events lost", level=logging.WARNING, address=backend.address, why=why)
            finally:
                settled.set()
                self._core.roster.follow(backend.address, None)
            for instruction in mirror.restart():
                sink(instruction)
            await asyncio.sleep(EVENTS_AGAIN_S)
