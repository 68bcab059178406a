"""Bar 6 of issue 5: a writer of the disk tier is killed at random bytes, 200 times; 100,000 blocks reopen.

A kill leaves whole writes: the kernel ends those that it has begun. So half of the files are cut at a random
byte afterwards, as a power cut would, and half get part of one more record. Every block that is served must
be what was written, and every block that was stored in front of the cut must be served.
"""

import os
import random
import shutil
import signal
import statistics
import tempfile
import time
from pathlib import Path

from warmfleet_proto.errors import Corrupt
from warmfleet_worker.tiers import format
from warmfleet_worker.tiers.disk import DiskStore, Stored

from tests.bars.rows import Row
from tests.unit.tiers.blocks import BLOCK_SIZE, chain_of, made

KILLS = 200
BLOCKS = 100_000
BLOCK_BYTES = 4096
CHAIN = 250  # blocks that a writer is asked to store
PUT = 5


def main() -> list[Row]:
    rng = random.Random(6)
    folder = Path(tempfile.mkdtemp(prefix="warmfleet-bar-"))
    try:
        return [*_kills(folder, rng), *_reopen(folder)]
    finally:
        shutil.rmtree(folder)


def _kills(folder: Path, rng: random.Random) -> list[Row]:
    chain = chain_of(1, CHAIN, BLOCK_BYTES)
    wrong = lost = served = cut = 0
    for i in range(KILLS):
        own = folder / f"kill-{i}"
        told = _write_and_die(own, chain, rng.randrange(CHAIN * BLOCK_BYTES))
        if i % 2:
            told = min(told, _cut(own, rng))
            cut += 1
        else:
            _tear(own, rng)
        found = _served(DiskStore(own, made(BLOCK_BYTES), 1 << 40), chain)
        wrong += sum(copy not in (None, block.copy) for copy, block in zip(found, chain, strict=True))
        lost += sum(copy is None for copy in found[:told])
        served += sum(copy is not None for copy in found)
        shutil.rmtree(own)
    return [
        Row("5.6", "SIGKILLs", f"{KILLS}, {cut} then cut at a random byte", "200", KILLS == 200),
        Row("5.6", "blocks served wrong", f"{wrong} of {served}", "0", wrong == 0),
        Row("5.6", "blocks lost before the torn tail", str(lost), "0", lost == 0),
    ]


def _write_and_die(folder: Path, chain: list[Stored], at: int) -> int:
    """SIGKILL once the file has ``at`` bytes, wherever the writer stands; how many blocks it said it had."""
    said, say = os.pipe()
    child = os.fork()
    if not child:
        try:
            of = DiskStore(folder, made(BLOCK_BYTES), 1 << 40)
            for i in range(0, len(chain), PUT):
                of.put(chain[i : i + PUT])
                os.write(say, bytes([PUT]))
            signal.pause()
        finally:
            os._exit(1)
    os.close(say)
    path = folder / "00000001.wfkv"
    while not path.exists() or path.stat().st_size < at:
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    told = 0
    while data := os.read(said, 4096):
        told += sum(data)
    os.close(said)
    return told


def _cut(folder: Path, rng: random.Random) -> int:
    """How many whole records are left."""
    path = folder / "00000001.wfkv"
    size = path.stat().st_size
    start = len(format.preamble(made(BLOCK_BYTES)))
    at = rng.randrange(size + 1)
    os.truncate(path, at)
    return max(0, at - start) // (format.header_bytes(BLOCK_SIZE) + BLOCK_BYTES)


def _tear(folder: Path, rng: random.Random) -> None:
    """A record more, as far as a random byte."""
    path = folder / "00000001.wfkv"
    data = path.read_bytes()
    record = data[-format.header_bytes(BLOCK_SIZE) - BLOCK_BYTES :]
    with path.open("ab") as file:
        file.write(record[: rng.randrange(len(record))])


def _served(of: DiskStore, chain: list[Stored]) -> list[bytes | None]:
    found: list[bytes | None] = []
    for block in chain:
        copy = bytearray(BLOCK_BYTES)
        try:
            header = of.get(block.identity.hash, block.token_ids, copy)
        except Corrupt:
            header = None
        found.append(bytes(copy) if header else None)
    of.close()
    return found


def _reopen(folder: Path) -> list[Row]:
    own = folder / "many"
    of = DiskStore(own, made(BLOCK_BYTES), 1 << 30)
    for number in range(BLOCKS // 1000):
        of.put(chain_of(number, 1000, BLOCK_BYTES))
    of.close()
    taken, busy = [], []
    for _ in range(5):
        began, cpu = time.perf_counter(), time.process_time()
        again = DiskStore(own, made(BLOCK_BYTES), 1 << 30)
        announced = len(again.take_changes())
        taken.append(time.perf_counter() - began)
        busy.append(time.process_time() - cpu)
        again.close()
    figure = f"{statistics.median(taken):.2f} s, worst of five {max(taken):.2f} s"
    figure += f" ({statistics.median(busy):.2f} s of CPU), {announced} blocks"
    good = max(taken) <= 2 and announced == BLOCKS
    return [Row("5.6", "100k blocks of 4 KiB reopen", figure, "<= 2 s", good)]
