"""The tiers below the device, put together: what is copied down, by which thread, and what is told of it.

All bookkeeping is done in the event loop. One job at a time copies from the device to the host's memory, one
writes from there to the disk; the steps of the engine wait for neither.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import numpy as np
from warmfleet_proto.errors import Corrupt

from warmfleet_worker.engine.base import Engine
from warmfleet_worker.events import Change
from warmfleet_worker.fetch import Arrival
from warmfleet_worker.runner import Runner
from warmfleet_worker.source import Source
from warmfleet_worker.tiers.carriers import DiskCarrier, HostCarrier
from warmfleet_worker.tiers.complaints import Complaints
from warmfleet_worker.tiers.copies import copies_of
from warmfleet_worker.tiers.disk import DiskStore, Record, Stored
from warmfleet_worker.tiers.disk_supply import DiskSupply
from warmfleet_worker.tiers.host import HostTier
from warmfleet_worker.tiers.writeback import Saves, Spill, WriteBack

_JOB_BYTES = 32 << 20
_MAX_SPILLS = 8192  # blocks that wait for the disk
_LOOK_S = 0.5  # for the headers of what a peer asks for
_REST_S = 5.0  # after the disk took nothing


class Below:
    """See ``runner.Below``. ``start`` inside the loop, before the first step."""

    def __init__(self, runner: Runner, host: HostTier, store: DiskStore | None) -> None:
        engine: Engine = runner.engine
        self.host = host
        self.store = store
        self.complaints = Complaints(time.monotonic)
        self.writeback = WriteBack(runner.scheduler.cache, host)
        self.spilled = 0  # blocks handed to the disk
        self.unspilled = 0  # dropped: too many waited, the disk takes none, or they had left the host tier
        self._runner = runner
        self._engine = engine
        self.block_bytes = runner.scheduler.fetching.block_bytes = engine.block_bytes
        self._memory = engine.host_memory(host.cache.pool.total * self.block_bytes)
        self._copies = copies_of(engine, self._memory)
        self._most = max(1, _JOB_BYTES // self.block_bytes)
        self._saving = self._spilling = False
        self._spills: deque[Spill] = deque()
        self._rests_until = 0.0
        self._settled = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop
        self._mover = ThreadPoolExecutor(1, thread_name_prefix="write-back")
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="disk-writer")
        self._host_carrier = HostCarrier(engine, self._copies, self._report, self.condemn)
        self._carriers: list[HostCarrier | DiskCarrier] = [self._host_carrier]
        runner.carriers[Source.HOST] = self._host_carrier
        runner.scheduler.fetching.supplies.append(host)
        if store is not None:
            self._add_disk(store)
        runner.below = self

    def _add_disk(self, store: DiskStore) -> None:
        carrier = DiskCarrier(self._engine, store, self._report, self.complaints)
        self._carriers.append(carrier)
        self._private = memoryview(bytearray(self._most * self.block_bytes))
        self._runner.carriers[Source.DISK] = carrier
        self._runner.scheduler.fetching.supplies.append(DiskSupply(store.catalogue))

    def start(self) -> None:
        """Tells what the disk holds."""
        self._loop = asyncio.get_running_loop()
        self._runner.publish()

    @property
    def settled(self) -> bool:
        """Nothing waits to be written back, and nothing is on its way."""
        return not (self._saving or self._spilling or self._spills or self.writeback.queued)

    async def settle(self, within_s: float) -> None:
        """Waits so long at most."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while not self.settled:
                    self._settled.clear()
                    await self._settled.wait()

    def close(self) -> None:
        """What was queued for the disk and is not written yet is lost; what was is whole."""
        for thread in (self._mover, self._writer):
            thread.shutdown(wait=True, cancel_futures=True)
        for carrier in self._carriers:
            carrier.close()
        if self.store is not None:
            self.store.close()

    def noted(self, changes: list[Change]) -> list[Change]:
        """Takes what changed on the device; gives what changed below."""
        self.writeback.note(changes)
        self._save()
        self._settled.set()
        told = self.host.cache.take_changes()
        return told + self.store.take_changes() if self.store else told

    # ---- for peers -------------------------------------------------------------------------------

    async def records(self, root: bytes, hashes: Sequence[bytes]) -> dict[bytes, Record]:
        """Records of leading blocks of a run that are on disk; only those that are found quickly."""
        if self.store is None:
            return {}
        return await asyncio.to_thread(self.store.records, root, hashes, _LOOK_S)

    def copy(self, slot: int) -> memoryview:
        """The slot's part of the host's memory."""
        return self._memory[slot * self.block_bytes : (slot + 1) * self.block_bytes]

    def whole(self, slot: int) -> bool:
        """Whether the copy agrees with its sum. From any thread."""
        return self._copies.sum(self.copy(slot)) == self.host.sums[slot]

    def condemn(self, slot: int) -> None:
        """Its copy is wrong, and is not read again. From any thread."""
        self.complaints.say("corrupt", "a copy in the host's memory")
        self._tell(self.host.condemn, slot)

    def complain(self, error: Exception) -> None:
        """A block on disk could not be read, or is wrong. From any thread."""
        self.complaints.say("corrupt" if isinstance(error, Corrupt) else "read", error)
        self._tell(self._runner.publish)

    # ---- device -> host --------------------------------------------------------------------------

    def _save(self) -> None:
        if self._saving:
            return
        job = self.writeback.next(self._most)
        self._spill(self.writeback.take_present())
        if job is not None:
            self._saving = True
            self._mover.submit(self._copy_down, job)

    def _copy_down(self, job: Saves) -> None:
        """Copies blocks from the device to host memory. Runs in the mover's thread."""
        sums: list[bytes] | None = []
        try:
            blocks = [save.node.block for save in job.saves]
            sums = self._copies.down(blocks, [save.slot for save in job.saves])
        except Exception as error:
            self.complaints.say("copy", error)
            sums = None
        self._tell(self._saved, job, sums)

    def _saved(self, job: Saves, sums: list[bytes] | None) -> None:
        self._saving = False
        self._spill(self.writeback.done(job, sums))
        self._runner.publish()

    # ---- host -> disk ----------------------------------------------------------------------------

    def _spill(self, spills: list[Spill]) -> None:
        if self.store is None:
            return
        for spill in spills:
            if self.store.catalogue.get(spill.identity.hash) is not None:
                continue
            if self._takes_none() or len(self._spills) >= _MAX_SPILLS:
                self.unspilled += 1
            else:
                self._spills.append(spill)
        self._write_next()

    def _takes_none(self) -> bool:
        assert self.store is not None
        return self.store.read_only or time.monotonic() < self._rests_until

    def _write_next(self) -> None:
        if self._spilling or not self._spills:
            return
        self._spilling = True
        part = [self._spills.popleft() for _ in range(min(self._most, len(self._spills)))]
        self._writer.submit(self._write, part)

    def _write(self, spills: list[Spill]) -> None:
        """In the writer's thread. A private copy that agrees with the sum is what the block was, whatever
        becomes of its slot. It is made in memory that is there already, without the interpreter's lock: new
        memory for each block kept everybody else waiting, a hit on the host tier too."""
        assert self.store is not None
        stored, failed = [], False
        try:
            for i, spill in enumerate(spills):
                copy = self._private[i * self.block_bytes : (i + 1) * self.block_bytes]
                np.copyto(np.frombuffer(copy, np.uint8), np.frombuffer(self.copy(spill.slot), np.uint8))
                if self._copies.sum(copy) == spill.sum:
                    stored.append(Stored(spill.identity, spill.token_ids, copy))
            self.store.put(stored)
        except Exception as error:
            self.complaints.say("write", error)
            failed = True
        self._tell(self._written, len(spills), 0 if failed else len(stored), failed)

    def _written(self, asked: int, stored: int, failed: bool) -> None:
        self._spilling = False
        self.spilled += stored
        self.unspilled += asked - stored
        if failed:
            self._rests_until = time.monotonic() + _REST_S
            self.unspilled += len(self._spills)
            self._spills.clear()
        self._write_next()
        self._runner.publish()

    # ---- from other threads ----------------------------------------------------------------------

    def _report(self, arrival: Arrival) -> None:
        self._tell(self._runner.arrived, arrival)

    def _tell(self, what: Callable[..., Any], *arguments: Any) -> None:
        """Calls ``what`` in the event loop; does nothing once that has ended."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(what, *arguments)
