"""Route over gRPC beside an empty handler of the same server, asked in turn with equal messages.

The server is a process of its own and its CPU seconds are counted, so that a client which shares its
cores does not blur what a call costs. Bookings are ended between the windows, uncounted.
"""

import asyncio
import itertools
import json
import random
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from statistics import median
from typing import Any, NamedTuple

import grpc
import uvloop
from warmfleet_proto import channel, router_pb2_grpc
from warmfleet_proto import router_pb2 as rpb
from warmfleet_proto.limits import ROUTE_MESSAGE_BYTES
from warmfleet_router.client import LocalRouter
from warmfleet_router.garbage import collecting
from warmfleet_router.service import RouterService

from tests.bars.programs import Program, programs
from tests.bars.route_fleet import fleet, request
from tests.bars.rows import Row

BLOCKS, WORKERS = 512, 64
WINDOWS, WINDOW_S, OPEN = 8, 1.0, 32  # of each kind; calls under way
EMPTY = "warmfleet.bars.Empty"

Call = Callable[[rpb.RouteRequest], Awaitable[rpb.Placement]]


class Rate(NamedTuple):
    """Calls a second: of the server's CPU, and by the clock."""

    cpu: float
    clock: float


async def serve() -> None:
    core, chains = fleet(BLOCKS, WORKERS, seed=1)
    ticks = itertools.count()
    router = LocalRouter(core, lambda: 100.0 + next(ticks) * 1e-6)  # nobody falls silent
    answer = core.route(request(chains[0], BLOCKS, 0), 100.0)

    async def empty(_: rpb.RouteRequest, __: Any) -> rpb.Placement:
        return answer

    handler = grpc.unary_unary_rpc_method_handler(
        empty, rpb.RouteRequest.FromString, rpb.Placement.SerializeToString
    )
    server, _ = channel.server([], message_bytes=ROUTE_MESSAGE_BYTES)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(EMPTY, {"Route": handler}),))
    router_pb2_grpc.add_RouterServicer_to_server(RouterService(router), server)  # type: ignore[no-untyped-call]
    port = channel.bind(server, "127.0.0.1:0", None)
    await server.start()
    garbage = asyncio.create_task(collecting())  # as in the router program
    print(json.dumps({"ready": True, "grpc": f"127.0.0.1:{port}"}), flush=True)
    await server.wait_for_termination()
    garbage.cancel()


async def compare(server: Program, address: str) -> tuple[Rate, Rate]:
    """Route's rate and the empty handler's, medians of windows in turn."""
    _, chains = fleet(BLOCKS, WORKERS, seed=1)
    chance = random.Random(1)
    asks = [request(chance.choice(chains), BLOCKS, number) for number in range(500)]
    rates: dict[str, list[Rate]] = {"empty": [], "route": []}
    async with channel.connect(address, message_bytes=ROUTE_MESSAGE_BYTES) as made:
        stub: Any = router_pb2_grpc.RouterStub(made)  # type: ignore[no-untyped-call]
        empty: Any = made.unary_unary(
            f"/{EMPTY}/Route", rpb.RouteRequest.SerializeToString, rpb.Placement.FromString
        )
        for _ in range(1 + WINDOWS):  # the first of each warms up
            for name, call in (("empty", empty), ("route", stub.Route)):
                rate, answers = await _window(server, call, asks)
                rates[name].append(rate)
                if name == "route":
                    await _end(stub, answers)
    route, nothing = (Rate(*map(median, zip(*rates[name][1:], strict=True))) for name in ("route", "empty"))
    return route, nothing


async def _window(
    server: Program, call: Call, asks: Sequence[rpb.RouteRequest]
) -> tuple[Rate, list[rpb.Placement]]:
    answers: list[rpb.Placement] = []
    cpu, start = server.cpu_s(), time.perf_counter()

    async def caller(number: int) -> None:
        while time.perf_counter() < start + WINDOW_S:
            answers.append(await call(asks[(number + len(answers)) % len(asks)]))

    await asyncio.gather(*map(caller, range(OPEN)))
    took, used = time.perf_counter() - start, server.cpu_s() - cpu
    return Rate(len(answers) / used, len(answers) / took), answers


async def _end(stub: Any, placements: Sequence[rpb.Placement]) -> None:
    for some in range(0, len(placements), OPEN):
        ends = [
            rpb.FinishRequest(booking=p.booking, outcome=rpb.FinishRequest.OK)
            for p in placements[some : some + OPEN]
        ]
        await asyncio.gather(*map(stub.Finish, ends))


def rows() -> list[Row]:
    with programs() as starter:
        server = starter.start("route-grpc", [sys.executable, "-m", "tests.bars.route_grpc"])
        route, empty = uvloop.run(compare(server, server.ready()["grpc"]))
    what = f"Route over gRPC, {BLOCKS} keys, beside an empty handler"
    ratio = route.cpu / empty.cpu
    figure = f"{ratio:.2f}x: {route.cpu:.0f} and {empty.cpu:.0f} calls a CPU second"
    by_clock = f"{route.clock / empty.clock:.2f}x: {route.clock:.0f} and {empty.clock:.0f} a second"
    return [Row("3.3", what, figure, ">= .6x", ratio >= 0.6), Row("3.3", f"{what}, by the clock", by_clock)]


if __name__ == "__main__":
    uvloop.run(serve())
