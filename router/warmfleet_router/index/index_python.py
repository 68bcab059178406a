"""The index's blocks in Python: the definition that ``_native.c`` is held equal to, and its stand-in.

Blocks live in numbered *slots*. What is held of a block is one integer with three bits a column
(``seats``), one a tier. Above the cap a block makes room for a new one: of the next ``WINDOW``
slots the one longest untouched goes, and of several such the deepest.

Pure: no clock, no chance. One thread owns an index; nothing is locked.
"""

import sys
from array import array
from collections.abc import Iterator, Sequence
from math import inf, isnan
from typing import Final

from warmfleet_proto.limits import KEY_BYTES

from warmfleet_router.index.seats import MAX_COLUMNS

MAX_CAP: Final = 1 << 29  # blocks
MAX_TOP: Final = 64
MAX_DEPTH: Final = (1 << 24) - 1  # deeper blocks count as this deep
TIERS: Final = 3  # device, host, disk: 1, 2, 3 as in worker.proto

WINDOW: Final = 16  # slots looked at for one eviction
NEW: Final = 1  # passes of the window that a new block survives
TOUCHED: Final = 3  # ... and one that was stored again or looked up

_COLUMN = (1 << TIERS) - 1


class Presence:
    """Which column holds which block in which tier; ``index.Index`` adds the workers to it."""

    def __init__(self, cap: int = 1_000_000) -> None:
        if not 1 <= cap <= MAX_CAP:
            raise ValueError(f"cap must be from 1 to {MAX_CAP} blocks, not {cap}")
        self.cap: Final = cap
        self.gaps = 0
        self._slots: dict[int, int] = {}  # key -> slot
        self._keys = array("Q")  # by slot, as all below
        self._holders: list[int] = []
        self._depths = array("I")
        self._ages = bytearray()
        self._free: list[int] = []
        self._hand = 0

        self._columns: dict[int, int] = {}  # live worker -> its column
        self._workers: dict[int, int] = {}  # column -> its live worker
        self._held = [0] * MAX_COLUMNS  # by column
        self._live = 0  # lowest bit of every live worker's column

    def __len__(self) -> int:
        """Distinct blocks, those of departed workers included until they are swept."""
        return len(self._slots)

    # ---- seats --------------------------------------------------------------------------------

    @property
    def _extent(self) -> int:
        return len(self._keys)

    def held(self, worker: int, /) -> int:
        """Distinct blocks that it holds in any tier."""
        return self._held[self._column(worker)]

    def _column(self, worker: int) -> int:
        column = self._columns.get(worker)
        if column is None:
            raise IndexError(f"no worker {worker}")
        return column

    def _seat(self, worker: int, column: int) -> None:
        self._held[column] = 0
        self._columns[worker], self._workers[column] = column, worker
        self._live |= 1 << TIERS * column

    def _unseat(self, worker: int) -> int:
        column = self._column(worker)
        del self._columns[worker], self._workers[column]
        self._live &= ~(1 << TIERS * column)
        return column

    def _withdraw(self, columns: bytes, start: int, stop: int) -> None:
        departed = int.from_bytes(columns, "little")
        bits = sum(
            _COLUMN << TIERS * column for column in range(departed.bit_length()) if departed >> column & 1
        )
        for slot in range(start, stop):
            self._forget(slot, bits)

    # ---- presence -----------------------------------------------------------------------------

    def store(self, worker: int, tier: int, depth: int, keys: bytes, /) -> None:
        """The worker holds these blocks in this tier; ``keys[i]`` is at position ``depth + i``."""
        column, shift = self._column(worker), _shift(tier)
        if depth < 0:
            raise ValueError("depth must not be negative")
        bit, any_tier = 1 << TIERS * column + shift, _COLUMN << TIERS * column
        for position, key in enumerate(_unpack(keys), depth):
            slot = self._slots.get(key)
            if slot is None:
                slot = self._insert(key, min(position, MAX_DEPTH))
            else:
                self._ages[slot] = TOUCHED
            before = self._holders[slot]
            self._held[column] += not before & any_tier
            self._holders[slot] = before | bit

    def remove(self, worker: int, tier: int, keys: bytes, /) -> None:
        """The worker holds these blocks no longer in this tier; unknown blocks are passed over."""
        column, shift = self._column(worker), _shift(tier)
        bit = 1 << TIERS * column + shift
        for key in _unpack(keys):
            if (slot := self._slots.get(key)) is not None:
                self._forget(slot, bit)

    def _forget(self, slot: int, bits: int) -> None:
        before = self._holders[slot]
        after = self._holders[slot] = before & ~bits
        if after == before:
            return
        for column in _columns(_lowest_bits(before, self._live) & ~_lowest_bits(after, self._live)):
            self._held[column] -= 1
        if not after:
            self._discard(slot)

    def _discard(self, slot: int) -> None:
        del self._slots[self._keys[slot]]
        self._holders[slot] = 0
        self._free.append(slot)

    def _insert(self, key: int, depth: int) -> int:
        if len(self._slots) >= self.cap:
            self._evict()
        if self._free:
            slot = self._free.pop()
            self._keys[slot], self._depths[slot], self._ages[slot] = key, depth, NEW
        else:
            slot = len(self._keys)
            self._keys.append(key)
            self._depths.append(depth)
            self._ages.append(NEW)
            self._holders.append(0)
        self._slots[key] = slot
        return slot

    def _evict(self) -> None:
        """At the cap no slot is free: the window is full of blocks."""
        victim, worst = -1, (False, 0, 0)
        for slot in range(self._hand, self._hand + min(WINDOW, self.cap)):
            slot %= self.cap
            departed = not _lowest_bits(self._holders[slot], self._live)
            claim = (departed, TOUCHED - self._ages[slot], self._depths[slot])
            if victim < 0 or claim > worst:
                victim, worst = slot, claim
            self._ages[slot] = max(self._ages[slot] - 1, 0)
        self._hand = (self._hand + WINDOW) % self.cap
        self.gaps += not worst[0]
        self._forget(victim, -1)

    # ---- lookup -------------------------------------------------------------------------------
    def leading(
        self, keys: bytes, booked: Sequence[float], top: int = 16, leap: bool = True, /
    ) -> tuple[dict[int, int], dict[int, int]]:
        """By worker, how many leading blocks it holds; and how many of these it has in lower tiers alone,
        where there are any.

        Of the ``top`` workers with most leading blocks, then the ``top`` least booked. ``booked`` is each
        worker's load, by worker. Ties of blocks go to the less booked, ties of load to the lower number.
        ``leap`` changes nothing in the answer: the native index may be asked to go block by block, to be
        tested against itself.
        """
        if not 1 <= top <= MAX_TOP:
            raise ValueError(f"top must be from 1 to {MAX_TOP}")
        if self._columns and len(booked) <= max(self._columns):
            raise ValueError(f"booked needs a load for each of {max(self._columns) + 1} workers")
        blocks, seen = self._match(_unpack(keys))
        held, lower = {}, {}
        for column in self._choose(blocks, booked, top):
            worker, device = self._workers[column], 1 << TIERS * column
            held[worker] = blocks.get(column, 0)
            if below := sum(not holders & device for holders in seen[: held[worker]]):
                lower[worker] = below
        return held, lower

    def _match(self, chain: Sequence[int]) -> tuple[dict[int, int], list[int]]:
        """Leading blocks by column, where there are any, and what is held of each of the chain's blocks."""
        blocks: dict[int, int] = {}
        seen: list[int] = []
        alive = self._live
        for position, key in enumerate(chain):
            holders = self._touch(key)
            still = _lowest_bits(holders, alive)
            if position and still != alive:
                blocks.update(dict.fromkeys(_columns(alive & ~still), position))
            alive = still
            if not alive:
                break
            seen.append(holders)
        blocks.update(dict.fromkeys(_columns(alive if chain else 0), len(chain)))
        return blocks, seen

    def _touch(self, key: int) -> int:
        slot = self._slots.get(key)
        if slot is None:
            return 0
        self._ages[slot] = TOUCHED
        return self._holders[slot]

    def _choose(self, blocks: dict[int, int], booked: Sequence[float], top: int) -> list[int]:
        """Columns with most blocks, then the least booked."""
        load = {c: (inf if isnan(booked[w]) else booked[w], w) for w, c in self._columns.items()}
        found = sorted((c for c in blocks if blocks[c]), key=lambda c: (-blocks[c], load[c]))[:top]
        idle = sorted(load, key=load.__getitem__)[:top]
        return list(dict.fromkeys(found + idle))

    def memory(self) -> int:
        """Bytes that the blocks take, roughly."""
        containers = (self._slots, self._keys, self._holders, self._depths, self._ages, self._free)
        numbers = 2 * sys.getsizeof(1 << 60) * len(self._slots)  # keys and slots
        return sum(map(sys.getsizeof, containers)) + numbers + sum(map(sys.getsizeof, self._holders))


def _unpack(keys: bytes) -> list[int]:
    view = memoryview(keys)
    if view.nbytes % KEY_BYTES:
        raise ValueError(f"keys must be packed {KEY_BYTES}-byte keys, not {view.nbytes} bytes")
    return view.cast("B").cast("Q").tolist()


def _shift(tier: int) -> int:
    if not 1 <= tier <= TIERS:
        raise ValueError(f"tier must be from 1 to {TIERS}, not {tier}")
    return tier - 1


def _lowest_bits(holders: int, mask: int) -> int:
    """Columns with anything held, as their lowest bits; ``mask`` leaves no other bits over."""
    return (holders | holders >> 1 | holders >> 2) & mask


def _columns(lowest_bits: int) -> Iterator[int]:
    while lowest_bits:
        bit = lowest_bits & -lowest_bits
        yield (bit.bit_length() - 1) // TIERS
        lowest_bits ^= bit
