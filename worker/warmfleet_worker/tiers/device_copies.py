"""Copies of blocks between a device's pool and the host's memory at the link's rate, summed on the device."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock

import torch
from torch import Tensor
from warmfleet_kernels.movement import SumConstants

from warmfleet_worker.engine.mover import Event, Mover, Moving, sum_constants
from warmfleet_worker.tiers.copies import runs


class DeviceCopies:
    """See ``Copies``. Copy engines move slots between the host and a slab on the device, a kernel moves
    and sums blocks between the slab and the pool; two halves of the slab take turns, so both work at once."""

    part_bytes = 256 << 20

    def __init__(self, pool: Tensor, memory: memoryview, half_bytes: int = 32 << 20) -> None:
        self._size = pool[0].nbytes
        self._slots = torch.frombuffer(memory, dtype=torch.uint8).view(-1, self._size)
        self._most = max(1, half_bytes // self._size)
        self.constants = sum_constants(self._size, pool.device)
        self._upward, self._downward = (_Way(pool, self.constants, self._most) for _ in range(2))
        halves = max(1, min(self.part_bytes, memory.nbytes) // half_bytes)  # under way at once
        self._upward.mover.prepare(scatters=halves)
        self._downward.mover.prepare(gathers=halves)
        self._summing = Mover(torch.empty_like(pool[:1]), self.constants)
        self._scratch = torch.empty_like(self._summing.pool)
        self._lock = Lock()

    def sum(self, copy: memoryview) -> bytes:
        """Made on the device: a core of the host would take milliseconds."""
        with self._lock:
            with self._summing.current():
                self._summing.pool.view(torch.uint8)[0].copy_(torch.frombuffer(copy, dtype=torch.uint8))
            return self._summing.gather([0], self._scratch.data_ptr())().tobytes()

    def down(self, blocks: Sequence[int], slots: Sequence[int]) -> list[bytes]:
        return self._downward.down(self._slots, blocks, slots)

    def up(self, slots: Sequence[int], blocks: Sequence[int], sums: Sequence[bytes]) -> int:
        made = self._upward.up(self._slots, slots, blocks)
        agree = [one == other for one, other in zip(made, sums, strict=True)]
        return agree.index(False) if False in agree else len(agree)


class _Way:
    """One direction: its slab and its streams, used by one thread at a time."""

    def __init__(self, pool: Tensor, constants: SumConstants, most: int) -> None:
        self._most = most  # blocks of a half
        self.mover = Mover(pool, constants, most)
        self._copier = Mover(pool, constants)
        shape = (most, pool[0].nbytes)
        self._halves = [_Half(torch.empty(shape, dtype=torch.uint8, device=pool.device)) for _ in range(2)]
        self._lock = Lock()

    def up(self, host: Tensor, slots: Sequence[int], blocks: Sequence[int]) -> list[bytes]:
        """Sums of what was written."""
        with self._alone():
            moving = []
            for part, half in self._parts(len(slots)):
                self._copier.after(half.left)
                with self._copier.current():
                    for first, end, at in runs(slots[part]):
                        half.slab[first:end].copy_(host[at : at + end - first], non_blocking=True)
                self.mover.after(self._copier.mark())
                moving.append(self.mover.scatter(half.slab.data_ptr(), blocks[part]))
                half.left = self.mover.mark()
            return _waited(moving)

    def down(self, host: Tensor, blocks: Sequence[int], slots: Sequence[int]) -> list[bytes]:
        """Sums of what was read."""
        with self._alone():
            moving = []
            for part, half in self._parts(len(slots)):
                self.mover.after(half.left)
                moving.append(self.mover.gather(blocks[part], half.slab.data_ptr()))
                self._copier.after(self.mover.mark())
                with self._copier.current():
                    for first, end, at in runs(slots[part]):
                        host[at : at + end - first].copy_(half.slab[first:end], non_blocking=True)
                half.left = self._copier.mark()
            return _waited(moving)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Nothing is under way after it, even where a later part could not begin."""
        with self._lock:
            try:
                yield
            finally:
                self._copier.wait()
                self.mover.wait()

    def _parts(self, count: int) -> Iterator[tuple[slice, "_Half"]]:
        for n, first in enumerate(range(0, count, self._most)):
            yield slice(first, min(first + self._most, count)), self._halves[n % 2]


@dataclass(slots=True)
class _Half:
    slab: Tensor
    left: Event = None  # when its last content has been taken


def _waited(moving: list[Moving]) -> list[bytes]:
    return [row.tobytes() for each in moving for row in each()]
