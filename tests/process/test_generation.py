"""Which failures are tried elsewhere, how often, and what the router is told of each."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any

import pytest
from warmfleet_proto import router_pb2 as pb
from warmfleet_proto.errors import BadRequest, Rejected, WorkerLost
from warmfleet_proto.transfer_pb2 import Grant, Pull, Pulled
from warmfleet_proto.worker_pb2 import Ending, Sampling
from warmfleet_router.backends.worker import WorkerPool
from warmfleet_router.client import Report
from warmfleet_router.gateway.generation import Generation, GenerationRequest
from warmfleet_router.gateway.intake import ANONYMOUS
from warmfleet_router.gateway.job import Job
from warmfleet_router.gateway.placing import Upstream
from warmfleet_router.gateway.record import Record, carried_out
from warmfleet_router.gateway.reports import Reports
from warmfleet_router.gateway.retries import RetryBudget
from warmfleet_router.gateway.schema import SamplingOptions
from warmfleet_router.metrics import Metrics

from tests.process.scripted_worker import ScriptedWorker, output, pack, serving, unpack

PROMPT = pack(1, 2, 3)
OK, IGNORE, DROPPED = pb.FinishRequest.OK, pb.FinishRequest.IGNORE, pb.FinishRequest.DROPPED


class Placing:
    """A router that takes the first worker not excluded, and remembers what it is told."""

    books_at_once = False

    def __init__(self, addresses: list[str]) -> None:
        self.addresses = addresses
        self.routed: list[pb.RouteRequest] = []
        self.said: list[pb.ProgressRequest | pb.FinishRequest] = []
        self.slow: asyncio.Event | None = None
        self.pull: Pull | None = None
        self.refusal: BadRequest | None = None

    async def route(self, request: pb.RouteRequest) -> pb.Placement:
        self.routed.append(request)
        if self.refusal is not None:
            raise self.refusal
        booking = len(self.routed)
        if self.slow is not None:
            await self.slow.wait()
        for address in self.addresses:
            if address not in request.exclude:
                return pb.Placement(booking=booking, worker=address, address=address, pull=self.pull)
        raise Rejected("no worker is left")

    async def progress(self, request: pb.ProgressRequest) -> pb.ProgressResponse:
        await asyncio.sleep(0)  # a report that takes its time is not overtaken
        self.said.append(request)
        return pb.ProgressResponse()

    async def finish(self, request: pb.FinishRequest) -> pb.FinishResponse:
        self.said.append(request)
        return pb.FinishResponse(known=True)

    def tell(self, report: Report) -> Coroutine[Any, Any, object]:
        return self.progress(report) if isinstance(report, pb.ProgressRequest) else self.finish(report)


class Bench:
    def __init__(self, workers: list[ScriptedWorker], placing: Placing, fleet: Upstream) -> None:
        self.workers, self.placing, self.fleet = workers, placing, fleet

    def generation(self, deadline_s: float = 60.0, choices: int = 1) -> Generation:
        sampling = Sampling(max_tokens=4, choices=choices, prompt_logprobs=0)
        wanted = GenerationRequest("r", ANONYMOUS, "m", PROMPT, sampling, time.monotonic() + deadline_s)
        return Generation(self.fleet, wanted, lambda: None)

    async def endings(self) -> list[tuple[int, int]]:
        """(booking, outcome) of every booking, in the order of their ends."""
        await self.fleet.reports.close()
        return [(r.booking, r.outcome) for r in self.placing.said if isinstance(r, pb.FinishRequest)]


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    async with AsyncExitStack() as stack:
        workers = [ScriptedWorker() for _ in range(2)]
        placing = Placing([await stack.enter_async_context(serving(worker)) for worker in workers])
        pool = WorkerPool("g")
        stack.push_async_callback(pool.close)
        reports = Reports(placing)  # type: ignore[arg-type]
        fleet = Upstream("g", placing, pool, reports, RetryBudget(), time.monotonic)  # type: ignore[arg-type]
        yield Bench(workers, placing, fleet)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0)


async def handle(worker: ScriptedWorker) -> int:
    """Of the next submit on a fresh stream."""
    await worker.next("open")
    return int((await worker.next("submit")).handle)


async def rest(generation: Generation) -> list[int]:
    return [i for outputs in [b async for b in generation] for o in outputs for i in unpack(o.token_ids)]


@pytest.mark.parametrize(("reason", "outcome"), [(Ending.REJECTED, IGNORE), (Ending.FAILED, DROPPED)])
async def test_what_one_worker_does_not_begin_another_does(
    bench: Bench, reason: "Ending.Reason", outcome: int
) -> None:
    generation = bench.generation()
    starting = asyncio.create_task(generation.start())
    bench.workers[0].say(output(await handle(bench.workers[0]), 0, end=reason))
    bench.workers[1].say(output(await handle(bench.workers[1]), 0, 7, end=Ending.STOP))
    await starting
    assert await rest(generation) == [7]
    generation.finish(completion_tokens=1)
    generation.finish(WorkerLost("too late"))
    assert [list(r.exclude) for r in bench.placing.routed] == [[], [bench.placing.addresses[0]]]
    assert await bench.endings() == [(1, outcome), (2, OK)]
    assert [type(r).__name__ for r in bench.placing.said if r.booking == 2] == [
        "ProgressRequest",
        "FinishRequest",
    ]


async def test_a_pull_goes_to_the_worker_and_what_came_of_it_to_the_router(bench: Bench) -> None:
    bench.placing.pull = Pull(source="a", address="there:1", tokens=32, within_s=0.5, grant=Grant(mac=b"m"))
    generation = bench.generation()
    starting = asyncio.create_task(generation.start())
    await bench.workers[0].next("open")
    submit = await bench.workers[0].next("submit")
    assert submit.pull == bench.placing.pull
    first = output(submit.handle, 0, 7, end=Ending.STOP)
    pulled = Pulled(tokens=32, seconds=0.25, bytes=4096, wasted_bytes=96, failure="gone")
    first.started.pulled.CopyFrom(pulled)
    bench.workers[0].say(first)
    await starting
    generation.finish(completion_tokens=1)
    await bench.fleet.reports.close()
    progress = bench.placing.said[0]
    assert isinstance(progress, pb.ProgressRequest)
    said = (progress.pulled_tokens, progress.pull_s, progress.pulled_bytes, progress.wasted_bytes)
    assert (*said, progress.pull_failure) == (32, 0.25, 4096, 96, "gone")


async def test_an_answer_goes_on_elsewhere_with_the_tokens_that_have_come(bench: Bench) -> None:
    generation = bench.generation()
    starting = asyncio.create_task(generation.start())
    at = await handle(bench.workers[0])
    bench.workers[0].say(output(at, 0, 7))
    await starting
    reading = asyncio.create_task(rest(generation))
    bench.workers[0].say(output(at, 1, 8), output(at, 2, end=Ending.FAILED))
    await bench.workers[1].next("open")
    submit = await bench.workers[1].next("submit")
    assert unpack(submit.token_ids) == [1, 2, 3, 7, 8]
    assert submit.prompt_tokens == 5
    assert submit.sampling == Sampling(max_tokens=2, choices=1, drawn=2)
    began_again = output(submit.handle, 0, 9)
    began_again.started.cached_tokens = 4
    bench.workers[1].say(began_again, output(submit.handle, 1, end=Ending.STOP))
    assert await reading == [7, 8, 9]
    generation.finish(completion_tokens=3)
    assert await bench.endings() == [(1, DROPPED), (2, OK)]
    assert (generation.prompt_tokens, generation.cached_tokens) == (3, 0), "of the prompt that was sent"
    assert [r.prompt_tokens for r in bench.placing.routed] == [3, 5]
    assert [r.max_tokens for r in bench.placing.routed] == [4, 2]
    (again,) = (r for r in bench.placing.said if r.booking == 2 and isinstance(r, pb.ProgressRequest))
    assert again.cached_tokens == 4
    ended = [r.completion_tokens for r in bench.placing.said if isinstance(r, pb.FinishRequest)]
    assert ended == [0, 1], "of three tokens the second worker has drawn one"


async def test_all_prompts_of_a_request_go_on_elsewhere(bench: Bench) -> None:
    """More than the budget's free ones, and they are under way in one request."""
    generations = [bench.generation() for _ in range(100)]

    async def answered() -> tuple[list[list[int]], None]:
        await asyncio.gather(*[generation.start() for generation in generations])
        return await asyncio.gather(*[rest(generation) for generation in generations]), None

    record = Record(Metrics(), "r", 0.0)
    asked = Job("i", 0, False, "m", (), SamplingOptions(), False, False)
    carrying = asyncio.create_task(carried_out(bench.fleet, record, asked, generations, answered()))
    for worker, token, end in zip(bench.workers, (7, 8), (Ending.FAILED, Ending.STOP), strict=True):
        await worker.next("open")
        for _ in generations:
            at = (await worker.next("submit")).handle
            worker.say(output(at, 0, token), output(at, 1, end=end))
    assert await carrying == ([[7, 8]] * len(generations), None)
    assert bench.fleet.budget.under_way == 0


async def test_a_worker_that_is_lost_is_no_fault_of_the_client(bench: Bench) -> None:
    """What is left may fit nobody who is there now, or its model has gone with the worker."""
    generation = bench.generation()
    starting = asyncio.create_task(generation.start())
    at = await handle(bench.workers[0])
    bench.workers[0].say(output(at, 0, 7))
    await starting
    bench.placing.refusal = BadRequest("model 'm' is not served here", "model", 404)
    bench.workers[0].say(output(at, 1, end=Ending.FAILED))
    with pytest.raises(WorkerLost):
        await rest(generation)
    assert await bench.endings() == [(1, DROPPED)]


async def test_nothing_is_left_of_an_answer_that_is_longer_than_was_asked_for(bench: Bench) -> None:
    """Its worker was wrong, and was lost before it had said that it was at its end."""
    generation = bench.generation()
    starting = asyncio.create_task(generation.start())
    at = await handle(bench.workers[0])
    bench.workers[0].say(output(at, 0, 7, 8, 9, 10, 11))
    await starting
    reading = asyncio.create_task(rest(generation))
    bench.workers[0].say(output(at, 5, end=Ending.FAILED))
    await bench.workers[1].next("open")
    submit = await bench.workers[1].next("submit")
    assert submit.sampling.max_tokens == 0
    bench.workers[1].say(output(submit.handle, 0, end=Ending.LENGTH))
    assert await reading == [7, 8, 9, 10, 11]


@pytest.mark.parametrize("why", ["several choices", "servers only"])
async def test_some_answers_end_with_their_worker(bench: Bench, why: str) -> None:
    generation = bench.generation(choices=2 if why == "several choices" else 1)
    generation.others = bench.placing.addresses[1:] if why == "servers only" else []
    starting = asyncio.create_task(generation.start())
    at = await handle(bench.workers[0])
    bench.workers[0].say(output(at, 0, 7))
    await starting
    bench.workers[0].say(output(at, 1, end=Ending.FAILED))
    with pytest.raises(WorkerLost) as lost:
        await rest(generation)
    generation.finish(lost.value)
    assert await bench.endings() == [(1, DROPPED)]
    assert bench.workers[1].streams == 0


async def test_a_bad_request_is_bad_everywhere(bench: Bench) -> None:
    generation = bench.generation()
    starting = asyncio.create_task(generation.start())
    bench.workers[0].say(output(await handle(bench.workers[0]), 0, end=Ending.BAD_REQUEST))
    with pytest.raises(BadRequest):
        await starting
    assert await bench.endings() == [(1, IGNORE)]
    assert bench.workers[1].streams == 0


async def test_when_all_have_refused_the_last_of_them_is_heard(bench: Bench) -> None:
    starting = asyncio.create_task(bench.generation().start())
    for worker in bench.workers:
        worker.say(output(await handle(worker), 0, end=Ending.REJECTED))
    with pytest.raises(Rejected, match="scripted"):
        await starting
    assert await bench.endings() == [(1, IGNORE), (2, IGNORE)]


async def test_an_empty_budget_forbids_another_try(bench: Bench) -> None:
    """Of what is refused, however much is under way: a worker that is lost may have had all of that."""
    bench.fleet.budget.under_way = 1000
    while bench.fleet.budget.take(time.monotonic()):
        pass
    starting = asyncio.create_task(bench.generation().start())
    bench.workers[0].say(output(await handle(bench.workers[0]), 0, end=Ending.REJECTED))
    with pytest.raises(Rejected, match="scripted"):
        await starting
    assert bench.workers[1].streams == 0


async def test_a_stuck_worker_does_not_outlive_the_deadline(bench: Bench) -> None:
    generation = bench.generation(deadline_s=0.05)
    began = time.monotonic()
    with pytest.raises(Rejected, match="deadline"):
        await generation.start()
    assert time.monotonic() - began < 30
    await handle(bench.workers[0])
    await bench.workers[0].next("cancel")
    assert await bench.endings() == [(1, IGNORE)]


async def test_who_leaves_while_being_placed_leaves_no_booking(bench: Bench) -> None:
    bench.placing.slow = asyncio.Event()
    starting = asyncio.create_task(bench.generation().start())
    await until(lambda: len(bench.placing.routed) == 1)
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    bench.placing.slow.set()
    await until(lambda: len(bench.placing.said) == 1)
    assert await bench.endings() == [(1, IGNORE)]


async def test_reports_of_one_booking_keep_their_order(bench: Bench) -> None:
    reports = bench.fleet.reports
    for number in (1, 2):
        reports.progress(pb.ProgressRequest(booking=number))
        reports.finish(pb.FinishRequest(booking=number, outcome=OK))
    await reports.close()
    kinds = [type(said).__name__ for said in bench.placing.said if said.booking == 1]
    assert kinds == ["ProgressRequest", "FinishRequest"]
