"""Whole blocks between a torch pool and memory beside it, summed in the kernel that moves them.

The sums are ``warmfleet_proto.checksum``'s, so they cover every byte between the pool's memory and wherever
the other end of the move makes them again: over a link to the host, or to another device.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from warmfleet_kernels.movement import SumConstants, Told, gather_blocks, scatter_blocks
from warmfleet_proto import checksum

_log = logging.getLogger(__name__)

_ADDRESS = 4  # words of an address, aligned as a table should be

Sums = npt.NDArray[np.uint64]
"""[blocks, 2]"""

Event = torch.cuda.Event | None  # none without a device

Launch = Callable[[Told, Tensor, Tensor], object]
"""Of blocks to or from an address, by a table, their sums added to these."""

Moving = Callable[[], Sums]
"""Waits for what was launched; the sums of what was moved."""


def sum_constants(block_bytes: int, device: torch.device) -> SumConstants:
    parts = checksum.keys(), checksum.rungs(checksum.rows_of(block_bytes))
    return SumConstants(*(torch.from_numpy(part.view(np.int64)).to(device) for part in parts))


class Mover:
    """Moves blocks for one thread at a time, on a stream of its own.

    Readable blocks were finished before they became readable, and nobody reads written ones before they were
    waited for. So no event has to join the stream with that of the steps.
    """

    def __init__(self, pool: Tensor, constants: SumConstants, most: int = 1) -> None:
        """``pool`` [blocks, ...], of which it moves about so many at once, at most."""
        self.pool = pool.view(len(pool), -1).view(torch.int32)
        self._constants = constants
        self._most = most
        self._gathers: list[_Sheet] = []  # that are not in use
        self._scatters: list[_Sheet] = []
        self.stream = torch.cuda.Stream(pool.device) if pool.is_cuda else None  # type: ignore[no-untyped-call]

    def gather(self, blocks: Sequence[int], slab: int) -> Moving:
        """Blocks of the pool to the beginning of a slab, by its address (a multiple of 16)."""
        return self._move(self._gathers, self._gather, blocks, slab)

    def scatter(self, slab: int, blocks: Sequence[int]) -> Moving:
        """The way back. The blocks differ."""
        return self._move(self._scatters, self._scatter, blocks, slab)

    def prepare(self, gathers: int = 0, scatters: int = 0) -> None:
        """Compiles and records as many as will be under way at once, before somebody waits for them."""
        with self.current():
            self._gathers += [self._new(self._gather) for _ in range(gathers)]
            self._scatters += [self._new(self._scatter) for _ in range(scatters)]

    @contextmanager
    def current(self) -> Iterator[None]:
        """What is launched within goes to this stream, and its device is the thread's own. Where it raises,
        nothing of it is under way any more: nobody is left to wait for it, and its blocks may be another's
        next."""
        with torch.cuda.stream(self.stream):  # of None: nothing
            try:
                yield
            except BaseException:
                self.wait()
                raise

    def mark(self) -> Event:
        """An event behind all that was launched so far."""
        return None if self.stream is None else self.stream.record_event()

    def after(self, mark: Event) -> None:
        """What is launched from now on waits for it, on the device."""
        if mark is not None and self.stream is not None:
            self.stream.wait_event(mark)

    def wait(self) -> None:
        """Waits for all that was launched."""
        if self.stream is not None:
            self.stream.synchronize()

    def _move(self, spare: "list[_Sheet]", launch: Launch, blocks: Sequence[int], slab: int) -> Moving:
        with self.current():
            sheet = self._sheet(spare, launch, len(blocks))
            sheet.begin(blocks, slab)

        @cache  # asked again, it must not look into what is another move's by then
        def finish() -> Sums:
            sums = sheet.finish(len(blocks))
            spare.append(sheet)
            return sums

        return finish

    def _sheet(self, spare: "list[_Sheet]", launch: Launch, count: int) -> "_Sheet":
        while spare:
            if (sheet := spare.pop()).most >= count:
                return sheet
        self._most = max(self._most, count)
        return self._new(launch)

    def _new(self, launch: Launch) -> "_Sheet":
        return _Sheet(self._most, self.pool.device, launch)

    def _gather(self, slab: Told, table: Tensor, sums: Tensor) -> None:
        gather_blocks(self.pool, table, slab, self._constants, sums)

    def _scatter(self, slab: Told, table: Tensor, sums: Tensor) -> None:
        scatter_blocks(slab, self.pool, table, self._constants, sums)


class _Sheet:
    """What goes beside a move: from where to where, on its way to the device, and the sums on their way back.

    Every move makes the same calls on the same memory. On a device they are recorded and launched as one:
    each call by itself takes the interpreter's lock anew, and with it the time of whoever has it meanwhile.
    """

    def __init__(self, most: int, device: torch.device, launch: Launch) -> None:
        """Within a stream of its own. Numbers of ``most`` blocks fit."""
        self.most = most
        on_device = device.type == "cuda"
        sums = 4 * most  # words: zeros that go up before each move
        self._host = torch.zeros(sums + _ADDRESS + most, dtype=torch.int32, pin_memory=on_device)
        self._here = torch.zeros_like(self._host, device=device)
        self._back = torch.zeros((most, 2), dtype=torch.int64, pin_memory=on_device)
        words = self._host.numpy()
        self._address = words[sums : sums + 2].view(np.int64)
        self._table = words[sums + _ADDRESS :]
        self._told = Told(self._here[sums : sums + 2].view(torch.int64))
        self._sums = self._here[:sums].view(torch.int64).view(most, 2)
        self._launch = launch
        self._done = torch.cuda.Event() if on_device else None  # type: ignore[no-untyped-call]
        self._graph = self._recorded() if on_device else None

    def begin(self, blocks: Sequence[int], slab: int) -> None:
        self._address[0] = slab
        self._table[: len(blocks)] = blocks
        self._table[len(blocks) :] = -1
        if self._graph is None:
            self._run(len(blocks))
        else:
            self._graph.replay()
        if self._done is not None:
            self._done.record()

    def finish(self, count: int) -> Sums:
        """Waits for it."""
        if self._done is not None:
            self._done.synchronize()
        return self._back[:count].numpy().copy().view(np.uint64)

    def _run(self, count: int) -> None:
        self._here.copy_(self._host, non_blocking=True)
        self._launch(self._told, self._here[-self.most :][:count], self._sums[:count])
        self._back.copy_(self._sums, non_blocking=True)

    def _recorded(self) -> torch.cuda.CUDAGraph | None:
        """None where it cannot be recorded; each call is made anew then."""
        self._table[:] = -1
        self._run(self.most)  # moves nothing, and compiles
        graph = torch.cuda.CUDAGraph()
        try:
            graph.capture_begin(capture_error_mode="thread_local")  # others go on with what they do
            try:
                self._run(self.most)
            finally:
                graph.capture_end()
        except RuntimeError as error:
            _log.warning("moves are not recorded: %s", error)
            return None
        return graph
