"""Bar 2 of issue 5, the CPU half: 1 GiB of scattered blocks over loopback, beside iperf3 and a gRPC stream.

The source holds its blocks in another process, out of order, with the sums that were made when they were
written. At the target each block ends in a slab, where its sum is compared. The gRPC stream does the same: a
block a message, the sums in the first, all of them plain bytes; a protobuf message around each would copy it
once more at either end.

Each way has its turn in every round, in one order and then in the other, and is compared with the others of
its round: what else runs on the machine changes within a minute.
"""

import asyncio
import contextlib
import json
import os
import random
import shutil
import socket
import statistics
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from multiprocessing import get_context
from multiprocessing.connection import Connection
from threading import Thread
from typing import NamedTuple

import grpc
from warmfleet_proto.transfer_pb2 import Offer
from warmfleet_worker.transfer.frames import PIECE_BYTES, SUM_BYTES, block_sum
from warmfleet_worker.transfer.slabs import Slabs
from warmfleet_worker.transfer.tcp_source import TcpSource
from warmfleet_worker.transfer.tcp_target import TcpTarget
from warmfleet_worker.transfer.transport import Parcel

from tests.bars.peers import free_port
from tests.bars.rows import Row
from tests.unit.transfer.hauls import LEASE, SECRET, Blocks, Collected

BLOCK_BYTES = 2 << 20
BLOCKS = 512
TOTAL = BLOCKS * BLOCK_BYTES
STREAMS = 2  # as a worker takes with two cores
ROUNDS = 9


class Summing(Blocks):
    """Sums every block anew when it is asked for, as for one that has never left its pool."""

    def fetch(self, first: int, count: int, slab: memoryview) -> Parcel | None:
        parts = self.memory[first : first + count]
        return Parcel(parts, [block_sum(part, first + i) for i, part in enumerate(parts)])


def blocks(kind: type[Blocks]) -> Blocks:
    """In the order of a pool that has been in use."""
    memory = memoryview(bytearray(os.urandom(BLOCK_BYTES) * BLOCKS))
    order = list(range(BLOCKS))
    random.Random(1).shuffle(order)
    return kind([memory[i * BLOCK_BYTES : (i + 1) * BLOCK_BYTES] for i in order])


def source(ready: Connection) -> None:
    """The source's process: all its ports, until its end of the pipe is closed."""
    made = blocks(Blocks)
    summing = Summing.__new__(Summing)
    summing.__dict__.update(made.__dict__)
    tcp = [TcpSource(shelf) for shelf in (made, summing)]
    asyncio.run(_serve(ready, [each.listen("127.0.0.1", 0) for each in tcp], made))


async def _serve(ready: Connection, ports: list[int], made: Blocks) -> None:
    server = grpc.aio.server()
    data = [bytes(block) for block in made.memory]

    async def stream(request: bytes, context: object) -> AsyncIterator[bytes]:
        yield b"".join(made.sums)
        for block in data:
            yield block

    methods = {"Stream": grpc.unary_stream_rpc_method_handler(stream)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Bench", methods),))
    grpc_port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    ready.send([*ports, grpc_port])
    await asyncio.to_thread(_tell_time, ready)
    await server.stop(0)


def _tell_time(pipe: Connection) -> None:
    """CPU seconds of this process, whenever they are asked for; until the pipe is closed."""
    with contextlib.suppress(EOFError):
        while True:
            pipe.recv()
            pipe.send(time.process_time())


@contextlib.contextmanager
def running() -> Iterator[tuple[list[int], Callable[[], float]]]:
    """The source's ports (tcp, tcp with sums made on the way, gRPC), and the CPU seconds of both ends."""
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=source, args=(theirs,), daemon=True)
    process.start()

    def cpu_s() -> float:
        ours.send(None)
        return float(ours.recv()) + time.process_time()

    try:
        yield ours.recv(), cpu_s
    finally:
        ours.close()
        process.terminate()
        process.join()


def by_tcp(port: int, slabs: Slabs) -> float:
    haul = Collected(BLOCKS, BLOCK_BYTES, slabs, keep=False)
    pulling = ("127.0.0.1", Offer(port=port), LEASE, SECRET, haul)
    threads = [Thread(target=TcpTarget().pull, args=pulling) for _ in range(STREAMS)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - began
    slabs.leave(haul)
    assert haul.good == BLOCKS, f"{haul.good} of {BLOCKS} blocks arrived"
    return TOTAL / seconds


def by_grpc(port: int) -> float:
    slab = memoryview(bytearray(BLOCK_BYTES))

    async def receive() -> float:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            began, good, sums = time.perf_counter(), 0, b""
            async for block in channel.unary_stream("/Bench/Stream")(b""):
                if not sums:
                    sums = block
                    continue
                slab[:] = block
                good += block_sum(slab, good) == sums[good * SUM_BYTES : (good + 1) * SUM_BYTES]
            assert good == BLOCKS, f"{good} of {BLOCKS} blocks arrived"
            return TOTAL / (time.perf_counter() - began)

    return asyncio.run(receive())


def by_iperf() -> float:
    port = str(free_port())
    server = subprocess.Popen(
        ["iperf3", "--server", "--one-off", "--forceflush", "--port", port], stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    while "listening" not in server.stdout.readline():
        assert server.poll() is None, "iperf3 did not start"
    command = ["iperf3", "--client", "127.0.0.1", "--port", port, "--bytes", str(TOTAL), "--json"]
    report = json.loads(subprocess.run(command, capture_output=True, text=True, check=False).stdout)
    server.kill()
    server.communicate()
    assert "error" not in report, report["error"]
    return float(report["end"]["sum_received"]["bits_per_second"]) / 8


def by_socket() -> float:
    """One stream of writes and reads of 128 KiB, as iperf3 makes them."""
    listener = socket.create_server(("127.0.0.1", 0))
    sender = get_context("spawn").Process(target=_send_zeros, args=(listener.getsockname(),), daemon=True)
    sender.start()
    peer, _ = listener.accept()
    buffer, received = bytearray(128 << 10), 0
    began = time.perf_counter()
    while count := peer.recv_into(buffer):
        received += count
    seconds = time.perf_counter() - began
    sender.join()
    return received / seconds


def _send_zeros(address: tuple[str, int]) -> None:
    with socket.create_connection(address) as peer:
        for _ in range(TOTAL >> 17):
            peer.sendall(bytes(128 << 10))


class Turn(NamedTuple):
    gb_per_s: float
    cpu_s_per_gb: float  # both ends


Turns = dict[str, list[Turn]]  # by the way that it went


def measured(rounds: int = ROUNDS) -> Turns:
    slabs = Slabs(8, PIECE_BYTES)  # as a worker keeps them
    with running() as ((tcp, summing, stream), cpu_s):
        ways: dict[str, Callable[[], float]] = {
            "tcp": lambda: by_tcp(tcp, slabs),
            "reference": by_iperf if shutil.which("iperf3") else by_socket,
            "grpc": lambda: by_grpc(stream),
            "summing": lambda: by_tcp(summing, slabs),
        }
        turns: Turns = {way: [] for way in ways}
        for number in range(rounds):
            for way in list(ways) if number % 2 else reversed(ways):
                before = cpu_s()
                rate = ways[way]()
                turns[way].append(Turn(rate / 1e9, (cpu_s() - before) / TOTAL * 1e9))
    return turns


def over(turns: Turns, one: str, other: str) -> tuple[float, str]:
    """How often as fast, by the median of all rounds; and in words."""
    ratios = sorted(a.gb_per_s / b.gb_per_s for a, b in zip(turns[one], turns[other], strict=True))
    median = statistics.median(ratios)
    rates = [statistics.median(turn.gb_per_s for turn in turns[way]) for way in (one, other)]
    spread = f"{ratios[0]:.2f} to {ratios[-1]:.2f} in {len(ratios)} rounds"
    return median, f"{median:.2f}x, {spread} ({rates[0]:.2f} against {rates[1]:.2f} GB/s)"


def main() -> list[Row]:
    name = "iperf3's single stream" if shutil.which("iperf3") else "a raw socket"
    turns = measured()
    to_reference, first = over(turns, "tcp", "reference")
    to_stream, second = over(turns, "tcp", "grpc")
    what = f"1 GiB in 2 MiB blocks over loopback, {STREAMS} streams, sums verified, over"
    cpu = [statistics.median(turn.cpu_s_per_gb for turn in turns[way]) for way in ("tcp", "grpc")]
    return [
        Row("5.2", f"{what} {name}", first, ">= .6x", to_reference >= 0.6),
        Row("5.2", f"{what} a grpc.aio stream", second, ">= 3x", to_stream >= 3),
        Row(
            "5.2",
            "CPU seconds a GB of both ends, beside the gRPC stream",
            f"{cpu[0]:.2f} against {cpu[1]:.2f}",
        ),
        Row("5.2", f"with sums made on the way as well, over {name}", over(turns, "summing", "reference")[1]),
    ]
