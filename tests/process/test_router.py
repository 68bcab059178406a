"""The router over real workers: presence, epochs, and one suite for both transports."""

import asyncio
import itertools
import json
import random
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from warmfleet_proto import channel, router_pb2_grpc, worker_pb2_grpc
from warmfleet_proto import router_pb2 as rpb
from warmfleet_proto import worker_pb2 as pb
from warmfleet_proto.errors import BadRequest, Rejected
from warmfleet_proto.limits import BOOKING_TTL_S, ROUTE_MESSAGE_BYTES
from warmfleet_router import watcher
from warmfleet_router.client import LocalRouter, RemoteRouter, Router
from warmfleet_router.core import RouterCore
from warmfleet_router.routing import Routing
from warmfleet_router.service import RouterService
from warmfleet_router.watcher import Watcher
from warmfleet_worker.worker import Worker

from tests.process.fleet import sim_worker
from tests.process.ports import free_port


class Clock:
    """Monotonic seconds that a test can push forward."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead


class Rig:
    """One core with its watcher over ``workers``, asked through ``router``."""

    def __init__(self, core: RouterCore, clock: Clock, router: Router) -> None:
        self.core = core
        self.clock = clock
        self.router = router

    def state(self, name: str) -> str:
        return next(v.state for v in self.core.workers(self.clock()) if v.worker == name)

    def held(self, name: str) -> int:
        return next(v.held_blocks for v in self.core.workers(self.clock()) if v.worker == name)

    def mirrors(self, worker: Worker) -> bool:
        """The index holds the worker's own set: as many blocks, the same digest, nothing outstanding."""
        address = worker.grpc_address
        cursor = self.core.roster.cursor(address)
        log = worker.presence
        return (cursor.epoch, cursor.seq, cursor.digest) == (log.epoch, log.seq, log.digest) and self.held(
            worker.config.name
        ) == len(log)


async def until(condition: Callable[[], bool], within_s: float = 60.0) -> None:
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


@asynccontextmanager
async def rig(*addresses: str, remote: bool = False, **routing: Any) -> AsyncIterator[Rig]:
    clock = Clock()
    core = RouterCore(Routing(**routing), seed=1)
    async with AsyncExitStack() as stack:
        watching = await stack.enter_async_context(Watcher(core, clock))
        await watching.watch(addresses)
        local = LocalRouter(core, clock)
        router = await stack.enter_async_context(_remote(local)) if remote else local
        await until(lambda: core.totals(clock()).healthy == len(addresses))
        yield Rig(core, clock, router)


@asynccontextmanager
async def _remote(local: LocalRouter) -> AsyncIterator[RemoteRouter]:
    server, _ = channel.server([], message_bytes=ROUTE_MESSAGE_BYTES)
    router_pb2_grpc.add_RouterServicer_to_server(RouterService(local), server)
    port = channel.bind(server, "127.0.0.1:0", None)
    await server.start()
    try:
        async with channel.connect(f"127.0.0.1:{port}", message_bytes=ROUTE_MESSAGE_BYTES) as made:
            yield RemoteRouter(made)
    finally:
        await server.stop(None)


def prompt(chance: random.Random, shared: int, own: int) -> bytes:
    ids = [*range(300, 300 + shared), *(chance.randrange(300, 30_000) for _ in range(own))]
    return b"".join(i.to_bytes(4, "little") for i in ids)


_gateways = itertools.count()


async def generate(address: str, token_ids: bytes, booking: int = 0, max_tokens: int = 4) -> pb.Started:
    """Serves one request directly at a worker."""
    async with channel.connect(address) as made:
        stream = worker_pb2_grpc.WorkerStub(made).Serve()
        await stream.write(pb.ServeRequest(open=pb.Open(gateway_id=f"gateway {next(_gateways)}")))
        submit = pb.Submit(
            handle=1,
            request_id="r",
            booking=booking,
            token_ids=token_ids,
            prompt_tokens=len(token_ids) // 4,
            sampling=pb.Sampling(max_tokens=max_tokens, ignore_eos=True),
        )
        await stream.write(pb.ServeRequest(submit=submit))
        started = pb.Started()
        while True:
            for output in (await stream.read()).outputs:
                if output.HasField("started"):
                    started = output.started
                if output.HasField("ending"):
                    assert output.ending.reason == pb.Ending.LENGTH, output.ending
                    return started


def ask(token_ids: bytes, **fields: Any) -> rpb.RouteRequest:
    return rpb.RouteRequest(
        **{"model": "sim", "gateway_id": "g", "token_ids": token_ids, "max_tokens": 4} | fields
    )


# ---- presence


async def test_the_index_is_the_workers_own_set_through_stores_and_evictions() -> None:
    """Small caches: every few prompts something is evicted."""
    chance = random.Random(1)
    async with AsyncExitStack() as stack:
        workers = [
            await stack.enter_async_context(sim_worker(name=f"w{i}", total_blocks=40)) for i in range(2)
        ]
        the = await stack.enter_async_context(rig(*(w.grpc_address for w in workers)))
        for i in range(30):
            worker = workers[i % 2]
            await generate(worker.grpc_address, prompt(chance, 64, chance.randrange(1, 300)))
            if i % 10 == 9:
                for worker in workers:
                    await until(lambda worker=worker: the.mirrors(worker))
        assert all(the.held(w.config.name) for w in workers)
        assert the.core.counters.kv_bad_digests == 0
        assert the.core.counters.kv_gaps == 0


async def test_a_router_that_comes_late_gets_a_snapshot() -> None:
    async with sim_worker(name="w", total_blocks=200) as worker:
        await generate(worker.grpc_address, prompt(random.Random(1), 160, 5))
        async with rig(worker.grpc_address) as the:
            await until(lambda: the.mirrors(worker))
            placement = await the.router.route(ask(prompt(random.Random(2), 160, 40)))
            assert placement.expected_tokens == 160


async def test_a_placement_is_served_with_the_overlap_that_was_expected() -> None:
    """Route, submit with the booking, report: the whole path of one request, twice."""
    async with sim_worker(name="w", total_blocks=200) as worker, rig(worker.grpc_address) as the:
        token_ids = prompt(random.Random(1), 320, 7)
        for expected in (0, 320):
            placement = await the.router.route(ask(token_ids))
            assert placement.expected_tokens == expected
            started = await generate(placement.address, token_ids, placement.booking)
            assert started.cached_tokens == expected
            progress = rpb.ProgressRequest(
                booking=placement.booking,
                cached_tokens=started.cached_tokens,
                prefill_s=started.prefill_s,
                ttft_s=0.01,
            )
            await the.router.progress(progress)
            await the.router.finish(
                rpb.FinishRequest(
                    booking=placement.booking, outcome=rpb.FinishRequest.OK, completion_tokens=4
                )
            )
            await until(lambda: the.mirrors(worker))
        hit, asked = the.core.workers(the.clock())[0].hit_total
        assert (hit, asked) == (320, 2 * 327)
        assert [p.delivered_tokens for p in the.core.placements()] == [320, 0]


async def test_a_booking_leaves_the_load_when_the_worker_reports_it() -> None:
    async with (
        sim_worker(name="w", total_blocks=200, sim={"instant": False}) as worker,
        rig(worker.grpc_address) as the,
    ):
        token_ids = prompt(random.Random(1), 320, 7)
        placement = await the.router.route(ask(token_ids, max_tokens=50))
        booked = the.core.roster.fleet.workers[worker.grpc_address].booked
        assert booked.slots == 1
        task = asyncio.create_task(generate(placement.address, token_ids, placement.booking, max_tokens=50))
        await until(lambda: booked.slots == 0)
        assert booked.alive == 1
        await task


# ---- epochs and loss


@asynccontextmanager
async def process(port: int) -> AsyncIterator[asyncio.subprocess.Process]:
    command = "import sys; from warmfleet_router.cli import main; sys.exit(main())"
    made = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", command, "worker", "--engine", "sim", "--name", "w"),
        *("--listen", f"127.0.0.1:{port}", "--set", "sim.instant=true", "--set", "total_blocks=200"),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert made.stdout is not None
        async with asyncio.timeout(60):
            ready = json.loads(await made.stdout.readline())
        assert ready["ready"]
        yield made
    finally:
        if made.returncode is None:
            made.kill()
        await made.wait()


async def test_a_killed_worker_is_lost_at_once_and_reborn_without_its_entries() -> None:
    port = free_port()
    address = f"127.0.0.1:{port}"
    token_ids = prompt(random.Random(1), 320, 7)
    async with AsyncExitStack() as stack:
        other = await stack.enter_async_context(sim_worker(name="other", total_blocks=200))
        async with process(port) as first, rig(address, other.grpc_address) as the:
            await generate(address, token_ids)
            await until(lambda: the.held("w") == 20)
            assert (await the.router.route(ask(token_ids))).worker == "w"
            first.send_signal(signal.SIGKILL)
            await until(lambda: the.state("w") == "lost")
            placement = await the.router.route(ask(token_ids))
            assert placement.worker == "other"
            async with process(port):
                await until(lambda: the.state("w") == "healthy")
                explained = await the.router.explain(ask(token_ids))
                assert {c.worker: c.overlap_tokens for c in explained.candidates}["w"] == 0
                await until(lambda: the.held("w") == 0)
                await generate(address, token_ids)
                await until(lambda: the.held("w") == 20)


async def test_a_stopped_worker_is_noticed_and_taken_back() -> None:
    port = free_port()
    address = f"127.0.0.1:{port}"
    async with process(port) as made, rig(address) as the:
        made.send_signal(signal.SIGSTOP)
        await until(lambda: the.state("w") == "stuck")
        made.send_signal(signal.SIGCONT)
        await until(lambda: the.state("w") == "healthy")
        assert the.core.counters.kv_new_epochs == 1


class Liar(worker_pb2_grpc.WorkerServicer):
    """A worker whose every batch is wrong."""

    def __init__(self) -> None:
        self.watches: list[float] = []

    async def Status(self, request: Any, context: Any) -> pb.StatusResponse:
        return pb.StatusResponse(worker="liar", model="m", block_size=16, epoch=5, max_context=1000)

    async def WatchKv(self, request: Any, context: Any) -> None:
        self.watches.append(time.monotonic())
        snapshot = pb.KvSnapshot(first=True, last=True, digest=bytes(16))
        await context.write(pb.WatchKvResponse(epoch=5, snapshot=snapshot))
        event = pb.KvEvent(stored=pb.Stored(tier=pb.DEVICE, hashes=bytes(16 * 100)))
        for seq in range(1, 10_000):
            batch = pb.KvBatch(seq=seq, digest=bytes(16), events=[event])
            await context.write(pb.WatchKvResponse(epoch=5, batch=batch))


async def test_a_lying_worker_keeps_nothing_and_is_asked_ever_more_rarely(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watcher, "LONGEST_WAIT_S", 60.0)  # of a stream, after which all begins anew
    server, _ = channel.server([])
    liar = Liar()
    worker_pb2_grpc.add_WorkerServicer_to_server(liar, server)
    port = channel.bind(server, "127.0.0.1:0", None)
    await server.start()
    try:
        async with rig(f"127.0.0.1:{port}") as the:
            await until(lambda: len(liar.watches) >= 5)
            assert the.held("liar") == 0
            pauses = [after - before for before, after in itertools.pairwise(liar.watches[:5])]
            least = [watcher.FIRST_WAIT_S * 2**n for n in range(4)]
            assert all(pause > 0.95 * wait for pause, wait in zip(pauses, least, strict=True)), pauses
    finally:
        await server.stop(None)


# ---- one suite for both transports


@pytest.fixture(params=["local", "remote"])
async def the(request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    async with AsyncExitStack() as stack:
        workers = [
            await stack.enter_async_context(sim_worker(name=f"w{i}", total_blocks=100)) for i in range(2)
        ]
        addresses = [worker.grpc_address for worker in workers]
        yield await stack.enter_async_context(rig(*addresses, remote=request.param == "remote"))


PROMPT = prompt(random.Random(3), 100, 0)


async def test_one_request_from_route_to_finish(the: Rig) -> None:
    explained = await the.router.explain(ask(PROMPT))
    placement = await the.router.route(ask(PROMPT))
    assert placement.worker == explained.chosen.worker
    assert placement.address in the.core.roster.fleet.workers
    assert placement.price_s == pytest.approx(sum(term.seconds for term in placement.terms))
    assert (await the.router.heartbeat(rpb.HeartbeatRequest(gateway_id="g"))).bookings == 1
    listed = (await the.router.list_workers(rpb.ListWorkersRequest())).workers
    assert [(w.worker, w.state, w.model) for w in listed] == [
        ("w0", "healthy", "sim"),
        ("w1", "healthy", "sim"),
    ]
    assert sum(w.bookings for w in listed) == 1
    await the.router.progress(rpb.ProgressRequest(booking=placement.booking, ttft_s=0.2))
    finish = rpb.FinishRequest(booking=placement.booking, outcome=rpb.FinishRequest.OK)
    assert (await the.router.finish(finish)).known
    assert not (await the.router.finish(finish)).known
    assert (await the.router.heartbeat(rpb.HeartbeatRequest(gateway_id="g"))).bookings == 0


async def test_errors_are_the_same_exceptions(the: Rig) -> None:
    with pytest.raises(BadRequest, match="not served here") as bad:
        await the.router.route(ask(PROMPT, model="ünknown"))
    assert (bad.value.field, bad.value.status) == ("model", 404)
    with pytest.raises(BadRequest, match="3 bytes") as bad:
        await the.router.explain(ask(b"123"))
    assert (bad.value.field, bad.value.status) == ("token_ids", 400)
    with pytest.raises(Rejected, match="no worker") as rejected:
        await the.router.route(ask(PROMPT, exclude=["w0", "w1"]))
    assert (rejected.value.retry_after, rejected.value.status) == (1.0, 503)
    with pytest.raises(BadRequest):
        await the.router.finish(rpb.FinishRequest(booking=1))


async def test_a_long_prompt_passes(the: Rig) -> None:
    with pytest.raises(BadRequest, match="more than the context"):
        await the.router.route(ask(bytes(8 << 20)))


async def test_a_silent_gateways_bookings_are_gone_after_their_ttl(the: Rig) -> None:
    dead = await the.router.route(ask(PROMPT, gateway_id="dead"))
    live = await the.router.route(ask(PROMPT, gateway_id="live"))
    for _ in range(6):
        the.clock.ahead += BOOKING_TTL_S / 5
        assert (await the.router.heartbeat(rpb.HeartbeatRequest(gateway_id="live"))).bookings == 1
    await until(lambda: the.core.totals(the.clock()).bookings == 1)
    ok = rpb.FinishRequest.OK
    assert not (await the.router.finish(rpb.FinishRequest(booking=dead.booking, outcome=ok))).known
    assert (await the.router.finish(rpb.FinishRequest(booking=live.booking, outcome=ok))).known


async def test_a_router_out_of_reach_is_rejected() -> None:
    async with channel.connect(f"127.0.0.1:{free_port()}") as made:
        with pytest.raises(Rejected, match="cannot be asked"):
            await RemoteRouter(made).route(ask(PROMPT))
