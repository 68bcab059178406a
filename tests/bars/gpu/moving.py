"""``python -m tests.bars.gpu moving``: bars 2 and 3 of issue 5, on two GPUs of one host.

Blocks of the Llama-3-8B shape, random bits: from device to device through mapped slabs, to and from the
host, over loopback TCP; then two workers with random weights, and what a prefix of 32k tokens costs
from wherever it lies. Each part may fail by itself; what was measured is printed at the end in any case.
"""

import faulthandler
import os
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from random import Random
from threading import Thread, Timer
from typing import Any

import torch
from warmfleet_proto.transfer_pb2 import Offer
from warmfleet_worker.engine.access import host_memory
from warmfleet_worker.tiers.device_copies import DeviceCopies
from warmfleet_worker.transfer.device_lanes import DeviceLanes
from warmfleet_worker.transfer.exchange import MOST_STREAMS
from warmfleet_worker.transfer.frames import DEVICE_PIECE_BYTES
from warmfleet_worker.transfer.haul import PoolHaul
from warmfleet_worker.transfer.lane import Shape
from warmfleet_worker.transfer.lane_target import LaneTarget
from warmfleet_worker.transfer.slabs import Slabs
from warmfleet_worker.transfer.tcp_target import TcpTarget

from tests.bars.gpu.copying import CopyingLanes
from tests.bars.gpu.giver import Giver, Scattered, fingerprints, memory_of
from tests.bars.gpu.spans import TimedLanes
from tests.bars.rows import Row, table

ON_GPU = torch.cuda.is_available()
LIMIT_S = float(os.environ.get("MOVING_LIMIT_S", "150"))
BLOCK_BYTES, BLOCKS, POOL = (2 << 20, 2048, 4096) if ON_GPU else (8 << 10, 24, 48)
TOTAL = BLOCK_BYTES * BLOCKS  # 4 GiB: 32k tokens
MIB = BLOCK_BYTES // 2  # so that slabs keep their counts of blocks where blocks are small
FULL = bool(os.environ.get("MOVING_FULL"))  # every shape and size, for whoever sets the defaults anew
SHAPES = [(3, 128), (4, 128), (3, 256)] if ON_GPU else [(2, 4), (3, 8)]
if FULL and ON_GPU:
    SHAPES += [(2, 64), (2, 128), (2, 256), (3, 64), (4, 32), (4, 64), (4, 256)]
HALVES = ((16, 32, 64) if FULL else (32,)) if ON_GPU else (1,)  # MiB
STREAMS = ((4, 6, 8, 12) if FULL else (MOST_STREAMS,)) if ON_GPU else (2,)
LINK, HOST, TCP = 250e9, 48e9, 10e9  # bytes/s wanted
CORES = 8
ROUNDS = 6 if ON_GPU else 2

DEVICE = torch.device("cuda:0" if ON_GPU else "cpu")
OTHER = ("cuda:1" if torch.cuda.device_count() > 1 else "cuda:0") if ON_GPU else "cpu"

_began, _began_at = time.perf_counter(), time.time()
rows: list[Row] = []


def say(text: object) -> None:
    print(f"[{time.perf_counter() - _began:6.1f} s] {text}", flush=True)


def note(row: Row) -> None:
    rows.append(row)
    say(row)


def part(name: str, run: Callable[[], None]) -> None:
    began = time.perf_counter()
    say(f"---- {name}")
    try:
        run()
    except Exception:
        traceback.print_exc(file=sys.stdout)
        note(Row("-", name, "failed: see above"))
    say(f"---- {name}: {time.perf_counter() - began:.1f} s")


def wait() -> None:
    if ON_GPU:
        torch.cuda.synchronize(DEVICE)


def median_s(call: Callable[[], object], rounds: int = ROUNDS) -> float:
    """After one round that is not counted."""
    times = []
    for _ in range(rounds):
        wait()
        began = time.perf_counter()
        call()
        wait()
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def gb(bytes_per_s: float) -> str:
    return f"{bytes_per_s / 1e9:.1f} GB/s"


# ---- from device to device ---------------------------------------------------------------------------


def topology() -> None:
    if not ON_GPU:
        return
    devices = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    say(f"{devices}, torch {torch.__version__}, {os.cpu_count()} cores")
    for command in (["nvidia-smi", "topo", "-m"], ["nvidia-smi", "nvlink", "-s", "-i", "0"]):
        print(subprocess.run(command, capture_output=True, text=True, check=False).stdout[:1500], flush=True)
    if OTHER == "cuda:0":
        return
    say(f"peer access: {torch.cuda.can_device_access_peer(0, 1)}")
    there = torch.empty(1 << 30, dtype=torch.uint8, device=OTHER).random_()
    here = torch.empty_like(there, device=DEVICE)
    note(
        Row(
            "3",
            "the link: torch copies 1 GiB from the other device",
            gb(there.nbytes / median_s(lambda: here.copy_(there))),
        )
    )


class Target:
    """This process's pool, and pulls into it."""

    def __init__(self, giver: Giver) -> None:
        self.numbers = Random(1).sample(range(POOL), BLOCKS)
        self.targets = Random(2).sample(range(POOL), BLOCKS)
        self.wanted = giver.ask("pool", POOL, BLOCK_BYTES // 4, self.numbers)
        self.giver = giver
        self.pool = Scattered(
            torch.zeros((POOL, BLOCK_BYTES // 4), dtype=torch.int32, device=DEVICE), self.targets
        )

    def haul(self, slabs: Slabs | None = None) -> PoolHaul:
        engine: Any = self.pool
        return PoolHaul(engine, slabs, self.targets, range(BLOCKS), lambda: None)

    def check(self) -> None:
        """Every block, and one of them byte by byte."""
        assert fingerprints(self.pool.words, self.targets) == self.wanted, "other bytes arrived"
        place = Random().randrange(BLOCKS)
        mine = self.pool.words[self.targets[place]].cpu().numpy().tobytes()
        assert mine == self.giver.ask("block", place), "one block differs"

    def poison(self) -> None:
        self.pool.words.fill_(0x55555555)
        wait()


def through_lanes(target: Target) -> None:
    found: dict[tuple[int, int], float] = {}
    for shape in SHAPES:
        part(f"lanes of {shape}", lambda shape=shape: found.update({shape: lanes(target, shape, TimedLanes)}))
    best = max(found, key=lambda shape: found[shape])
    note(
        Row(
            "3",
            f"lanes, the fastest: {best[0]} slabs of {best[1]} MiB",
            gb(found[best]),
            ">= 250 GB/s",
            found[best] >= LINK,
        )
    )
    if FULL:
        part("copied", lambda: lanes(target, best, CopyingLanes))


def lanes(target: Target, sized: tuple[int, int], kind: type[DeviceLanes]) -> float:
    """Bytes/s of a pull, connection to last block, its first one apart."""
    shape = Shape(sized[0], sized[1] * MIB if not ON_GPU else sized[1] << 20)
    name = target.giver.ask("lanes", shape)
    made = kind(target.pool.words, memory_of(DEVICE), shape)
    taking = LaneTarget(made)
    offer = Offer(transport="cuda", host="-", socket=name)

    def pull() -> None:
        haul = target.haul()
        taking.pull("", offer, 1, bytes(16), haul)
        assert haul.arrived == BLOCKS, f"{haul.arrived} arrived, {haul.bad} bad"

    target.poison()
    began = time.perf_counter()
    pull()
    first = time.perf_counter() - began
    target.check()
    target.giver.ask("spans", 1)
    if isinstance(made, TimedLanes):
        made.spans.told()
    took = median_s(pull)
    rate = TOTAL / took
    if isinstance(made, TimedLanes):
        say(f"of {1e3 * took:.1f} ms, the target: {made.spans.told(ROUNDS)}")
        say(f"the source: {target.giver.ask('spans', ROUNDS)}")
    made.close()
    target.giver.ask("close")
    what = f"lanes of {sized[0]} x {sized[1]} MiB, {'copied, then read' if kind is CopyingLanes else 'read'}"
    note(Row("3", what, f"{gb(rate)} (the first {first * 1e3:.0f} ms)"))
    return rate


# ---- to and from the host ----------------------------------------------------------------------------


def host_tier(target: Target) -> None:
    began = time.perf_counter()
    memory = host_memory(TOTAL, pinned=ON_GPU)
    say(f"{TOTAL >> 20} MiB of host memory in {time.perf_counter() - began:.1f} s")
    for each in target.pool.words.split(256):
        each.random_(-(2**31), 2**31 - 1)
    wanted = fingerprints(target.pool.words, target.targets)
    host_link(torch.frombuffer(memory, dtype=torch.uint8)[: TOTAL // 4])
    order = list(range(BLOCKS))
    for name, slots in (("in order", order), ("scattered", Random(3).sample(order, BLOCKS))):
        for half in HALVES:
            host_copies(target, wanted, memory, f"{name}, halves of {half} MiB", slots, half << 20)


def host_link(host: torch.Tensor) -> None:
    there = torch.empty(host.numel(), dtype=torch.uint8, device=DEVICE)
    up = there.nbytes / median_s(lambda: there.copy_(host, non_blocking=True))
    down = there.nbytes / median_s(lambda: host.copy_(there, non_blocking=True))
    note(Row("3", "the host's link, 1 GiB at a time: up, down", f"{gb(up)}, {gb(down)}"))


def host_copies(
    target: Target, wanted: list[int], memory: memoryview, name: str, slots: list[int], half: int
) -> None:
    words, blocks = target.pool.words, target.targets
    copies = DeviceCopies(words, memory, half)
    sums = copies.down(blocks, slots)
    took_down = median_s(lambda: copies.down(blocks, slots), 4)
    target.poison()
    assert carried(copies, slots, blocks, sums) == BLOCKS, "a good copy was refused"
    assert fingerprints(words, blocks) == wanted, "other bytes came back"
    took_up = median_s(lambda: carried(copies, slots, blocks, sums))
    figure = f"{gb(TOTAL / took_up)}, {gb(TOTAL / took_down)}"
    what = f"host tier, slots {name}: load, write back"
    note(Row("3", what, figure, ">= 48 GB/s", TOTAL / took_up >= HOST))
    slot, at = slots[7], BLOCK_BYTES * slots[7]
    assert copies.sum(memory[at : at + BLOCK_BYTES]) == sums[7]
    memory[at + 5] ^= 1
    assert carried(copies, slots, blocks, sums) == 7, "a wrong copy was taken"
    memory[at + 5] ^= 1
    copies.up([slot], [blocks[7]], [sums[7]])


def carried(copies: DeviceCopies, slots: Sequence[int], blocks: Sequence[int], sums: Sequence[bytes]) -> int:
    """As the carrier brings them: part by part."""
    size, good = max(1, copies.part_bytes // BLOCK_BYTES), 0
    for at in range(0, len(slots), size):
        here = slice(at, at + size)
        good += copies.up(slots[here], blocks[here], sums[here])
        if good < min(at + size, len(slots)):
            break
    return good


# ---- over TCP ----------------------------------------------------------------------------------------


def over_tcp(target: Target) -> None:
    port = target.giver.ask("tcp")
    slabs = Slabs(32, max(DEVICE_PIECE_BYTES, BLOCK_BYTES), partial(host_memory, pinned=ON_GPU))
    offer = Offer(transport="tcp", port=port)
    for streams in STREAMS:

        def pull(streams: int = streams) -> None:
            haul = target.haul(slabs)
            threads = [
                Thread(target=TcpTarget().pull, args=("127.0.0.1", offer, 1, bytes(16), haul))
                for _ in range(streams)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            haul.stop()
            assert haul.arrived == BLOCKS, f"{haul.arrived} arrived, {haul.bad} bad"

        target.poison()
        pull()
        target.check()
        ours, theirs, began = time.process_time(), target.giver.ask("cpu_s"), time.perf_counter()
        for _ in range(3):
            pull()
        took = time.perf_counter() - began
        ours, theirs = (time.process_time() - ours) / took, (target.giver.ask("cpu_s") - theirs) / took
        rate = 3 * TOTAL / took
        what = f"GPU to GPU over loopback TCP, {streams} streams; cores of the source, of the target"
        ok = rate >= TCP and max(ours, theirs) <= CORES
        note(Row("2", what, f"{gb(rate)}; {theirs:.1f}, {ours:.1f}", ">= 10 GB/s, <= 8", ok))
    target.giver.ask("close")


def main() -> int:
    """Bytes and workers in a process of their own each: what breaks a device's context breaks one of them."""
    last = Timer(LIMIT_S, _stop)
    last.daemon = True
    last.start()
    context = get_context("spawn")
    runs = []
    for run in (_bytes, _workers):  # both start at once, so that the second is ready when the first has ended
        ours, theirs = context.Pipe()
        process = context.Process(target=_process, args=(run, theirs, _began_at))
        process.start()
        runs.append((ours, process))
    for ours, process in runs:
        ours.send("go")
        while process.is_alive() or ours.poll():
            if ours.poll(0.2):
                try:
                    rows.append(ours.recv())
                except EOFError:
                    break
        process.join()
    print(f"\n{table(rows)}", flush=True)
    os._exit(0)  # threads of what failed may hang


def _process(run: Callable[[Connection], None], pipe: Connection, began_at: float) -> None:
    global _began, note
    left = max(LIMIT_S - (time.time() - began_at) - 3, 1)
    faulthandler.dump_traceback_later(left, file=sys.stdout)  # where it hangs, if it does
    _began = time.perf_counter() - (time.time() - began_at)
    tell = note

    def noted(row: Row) -> None:
        tell(row)
        pipe.send(row)

    note = noted
    run(pipe)
    os._exit(0)


def _bytes(pipe: Connection) -> None:
    with Giver(OTHER) as giver:
        giver.start("ready")
        pipe.recv()
        part("the machine", topology)
        say(f"the source's device: {giver.result()}")
        target: list[Target] = []
        part("pools", lambda: target.append(Target(giver)))
        if target:
            part("host tier", lambda: host_tier(target[0]))
            part("tcp", lambda: over_tcp(target[0]))
            part("lanes", lambda: through_lanes(target[0]))


def _workers(pipe: Connection) -> None:
    from tests.bars.gpu import prefixes

    with Giver(OTHER) as giver:
        giver.start("ready")
        pipe.recv()
        giver.result()
        part("workers", lambda: prefixes.run(giver, note, say))


def _stop() -> None:
    print(f"\nstopped after {LIMIT_S:.0f} s\n", flush=True)
    faulthandler.dump_traceback(file=sys.stdout)
    print(f"\n{table(rows)}", flush=True)
    os._exit(3)
