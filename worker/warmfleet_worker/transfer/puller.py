"""Carries fetches from peers: lease, transfer, release, with one retry at most.

Whatever goes wrong, what has arrived counts and the rest is computed: a pull can fail, a request cannot.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from warmfleet_proto.channel import split_address
from warmfleet_proto.errors import Corrupt, WorkerLost
from warmfleet_proto.transfer_pb2 import LeaseResponse, Offer

from warmfleet_worker.fetch import Arrival, Fetch
from warmfleet_worker.runner import Runner
from warmfleet_worker.transfer.choice import Choice
from warmfleet_worker.transfer.frames import PIECE_BYTES
from warmfleet_worker.transfer.haul import PoolHaul
from warmfleet_worker.transfer.peers import Peers
from warmfleet_worker.transfer.pull import Failure, Pulled
from warmfleet_worker.transfer.slabs import Slabs
from warmfleet_worker.transfer.transport import Busy, Transport
from warmfleet_worker.transfer.trip import Failed, Trip

_log = logging.getLogger(__name__)

MAX_PULLS = 8  # under way at once; more wait for their turn, within the time that they may take
_ATTEMPTS = 2
_MAX_NAMES = 1024  # of peers that are remembered: those that sent damaged blocks, and what each offered


class Puller:
    """See ``runner.Carrier``. ``name`` is this worker's, as grants call it."""

    def __init__(
        self, name: str, runner: Runner, peers: Peers, transports: Sequence[Transport], slabs: Slabs
    ) -> None:
        self.pulls: Counter[Failure] = Counter()  # ended, by what went wrong
        self.received_bytes = 0
        self.carried: Counter[str] = Counter()  # bytes, by the transport that brought them
        self.wasted_bytes = 0
        self.corrupt: Counter[str] = Counter()  # blocks, by the peer that sent them
        self._name = name
        self._runner = runner
        self._peers = peers
        self._transports = {each.name: each for each in transports}
        self._choice = Choice()
        self._offers: dict[str, tuple[str, Offer]] = {}  # by source: the last transport, and what it offered
        self._slabs = slabs
        self._turns = asyncio.Semaphore(MAX_PULLS)
        self._threads = ThreadPoolExecutor(
            MAX_PULLS * max(each.streams for each in transports), thread_name_prefix="transfer"
        )
        self._under_way: dict[int, Trip] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def transports(self) -> list[str]:
        """Their names."""
        return list(self._transports)

    def usual_s(self, source: str, blocks: int) -> float | None:
        """How long so many blocks usually take, by the transport of the last pull from there; None if there
        was none, or it failed."""
        if (known := self._offers.get(source)) is None:
            return None
        bytes_per_s = self._choice.usual(source, known[0])
        return blocks * self._runner.engine.block_bytes / bytes_per_s if bytes_per_s else None

    def begin(self, fetch: Fetch) -> None:
        self._under_way[fetch.id] = trip = Trip(fetch, self._runner.now())
        self._start(self._carry(trip))

    def abandon(self, fetch_id: int) -> None:
        if trip := self._under_way.get(fetch_id):
            trip.abandon()
            trip.fetch.request.pulled = self._outcome(trip, trip.ending)

    def turn(self, fetch_id: int) -> None:
        if trip := self._under_way.get(fetch_id):
            trip.turn()

    async def close(self) -> None:
        for trip in list(self._under_way.values()):
            self.abandon(trip.fetch.id)
        while self._tasks:  # a task that ends starts another one, which gives its lease back
            await asyncio.gather(*self._tasks, return_exceptions=True)
        self._threads.shutdown(wait=False)
        for each in self._transports.values():
            each.close()
        await self._peers.close()

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry(self, trip: Trip) -> None:
        """Carries the fetch, and tells the runner that it is over however that goes."""
        failure = Failure.NONE
        try:
            async with self._turns:
                trip.began = self._runner.now()
                failure = await self._attempts(trip)
        except Exception:
            _log.exception("a pull failed")
            failure = Failure.LOST
        finally:
            del self._under_way[trip.fetch.id]
            self._settle(trip, trip.ending if trip.abandoned else failure)
            why = "" if trip.abandoned else failure
            self._runner.arrived(Arrival(trip.fetch.id, trip.arrived, True, why, trip.back))

    async def _attempts(self, trip: Trip) -> Failure:
        for attempt in range(1, _ATTEMPTS + 1):
            if trip.abandoned:
                break
            try:
                await self._attempt(trip)
                return Failure.NONE
            except Failed as error:
                pull = trip.pull
                _log.info("pull from %s, attempt %d: %s (%s)", pull.source, attempt, error, error.failure)
                if error.final or attempt == _ATTEMPTS or trip.back:
                    return error.failure
        return Failure.GIVEN_UP

    async def _attempt(self, trip: Trip) -> None:
        """Leases and moves what has not arrived yet. Raises Failed."""
        pull = trip.pull
        self._dial(pull.source)
        lease = await self._lease(trip)
        try:
            trip.check(lease)
            if trip.abandoned:
                return
            await self._transfer(trip, lease)
        finally:
            self._start(self._peers.release(pull.address, lease.lease, lease.secret))
        if trip.there < len(trip.fetch.pieces) and not trip.abandoned:
            raise Failed(Failure.GONE, f"{trip.arrived} of {len(trip.fetch.pieces)} blocks are held there")

    def _dial(self, source: str) -> None:
        """Gets a transport ready while the source is asked for a lease: most likely it offers the same
        again."""
        if known := self._offers.get(source):
            name, offer = known
            self._threads.submit(self._transports[name].dial, offer)

    async def _lease(self, trip: Trip) -> LeaseResponse:
        """Raises Failed."""
        question = trip.question(self._name, self._runner.engine.layout)
        asked = self._peers.lease(trip.pull.address, question)
        asyncio.get_running_loop().call_soon(trip.prepare)  # while the source looks
        return await asked

    async def _transfer(self, trip: Trip, lease: LeaseResponse) -> None:
        """Moves the blocks by the best transport that is not busy. Raises Failed."""
        reached = self._reached(lease.offers)
        while True:
            name = self._best(trip.pull.source, reached)
            offer = reached.pop(name)
            self._remember(trip.pull.source, name, offer)
            haul, ends = await self._move(trip, lease, self._transports[name], offer)
            if not (_busy(ends) and reached) or trip.abandoned:
                return self._judge(trip, haul, [end for end in ends if end is not None])

    async def _move(
        self, trip: Trip, lease: LeaseResponse, transport: Transport, offer: Offer
    ) -> tuple[PoolHaul, list[BaseException | None]]:
        """How each stream ended. Raises Failed."""
        host = split_address(trip.pull.address)[0]
        loop = asyncio.get_running_loop()

        def tell() -> None:
            loop.call_soon_threadsafe(self._tell, trip)

        slabs = self._slabs if transport.staged else None
        haul = trip.begin(self._runner.engine, slabs, lease.blocks, tell)
        began = self._runner.now()
        try:
            streams = [
                loop.run_in_executor(
                    self._threads, transport.pull, host, offer, lease.lease, lease.secret, haul
                )
                for _ in range(min(transport.streams, -(-haul.blocks * haul.block_bytes // PIECE_BYTES)))
            ]
            ends = await asyncio.gather(*streams, return_exceptions=True)
        finally:
            trip.stop()
        if not _busy(ends):
            self._learn(trip, transport.name, haul, began)
        return haul, ends

    def _remember(self, source: str, name: str, offer: Offer) -> None:
        self._offers.pop(source, None)
        self._offers[source] = name, offer
        if len(self._offers) > _MAX_NAMES:
            del self._offers[next(iter(self._offers))]

    def _reached(self, offers: Iterable[Offer]) -> dict[str, Offer]:
        """The offers that can be tried from here, by the name of their transport."""
        return {
            each.transport: each
            for each in offers
            if each.transport in self._transports and self._transports[each.transport].reaches(each)
        }

    def _best(self, source: str, names: Iterable[str]) -> str:
        """Raises Failed."""
        name = self._choice.best(source, names, self._runner.now())
        if name is None:
            raise Failed(Failure.REFUSED, f"the source offers none of {', '.join(self._transports)}")
        return name

    def _learn(self, trip: Trip, name: str, haul: PoolHaul, began: float) -> None:
        now, source = self._runner.now(), trip.pull.source
        self.carried[name] += haul.received_bytes
        if haul.received_bytes and not haul.bad:
            self._choice.moved(source, name, haul.received_bytes, now - began, now)
        elif not trip.abandoned:
            self._choice.failed(source, name, now)

    def _judge(self, trip: Trip, haul: PoolHaul, errors: list[BaseException]) -> None:
        if haul.bad:
            known = trip.pull.source in self.corrupt or len(self.corrupt) < _MAX_NAMES
            self.corrupt[trip.pull.source if known else "others"] += haul.bad
            _log.error("%d blocks from %s were damaged on the way", haul.bad, trip.pull.source)
            raise Failed(Failure.CORRUPT, f"{haul.bad} blocks disagree with their sums", final=False)
        if haul.arrived + haul.back == haul.blocks or trip.abandoned:
            return
        for error in errors:
            if not isinstance(error, WorkerLost | Corrupt):
                raise error
        if wrong := next((each for each in errors if isinstance(each, Corrupt)), None):
            raise Failed(Failure.CORRUPT, str(wrong))
        raise Failed(Failure.LOST, str(errors[0]) if errors else "the streams ended early", final=False)

    def _tell(self, trip: Trip) -> None:
        """Tells the runner how far it has come, from either end; nothing once the fetch is over."""
        if trip.fetch.id in self._under_way and not trip.abandoned and trip.there > trip.told:
            trip.told = trip.there
            self._runner.arrived(Arrival(trip.fetch.id, trip.arrived, over=False, back=trip.back))

    def _settle(self, trip: Trip, failure: Failure) -> None:
        outcome = trip.fetch.request.pulled = self._outcome(trip, failure)
        self.pulls[failure] += 1
        self.received_bytes += outcome.bytes
        self.wasted_bytes += outcome.wasted_bytes

    def _outcome(self, trip: Trip, failure: Failure) -> Pulled:
        received = trip.received_bytes
        used = (trip.told if trip.abandoned else trip.there) * self._runner.engine.block_bytes
        return Pulled(self._runner.now() - trip.began, received, max(received - used, 0), failure)


def _busy(ends: Iterable[BaseException | None]) -> bool:
    """No stream got anything to move with, and none failed."""
    return all(isinstance(end, Busy) for end in ends)
