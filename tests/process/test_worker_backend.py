"""The gateway's end of a Serve stream, over real gRPC, against a worker that does as it is told."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator

import pytest
from warmfleet_proto.errors import BadRequest, Rejected, WorkerLost
from warmfleet_proto.limits import FRAME_BYTES, STREAM_BACKLOG_BYTES
from warmfleet_proto.worker_pb2 import Ending, Sampling, Submit
from warmfleet_router.backends import connection
from warmfleet_router.backends.attempt import Attempt
from warmfleet_router.backends.worker import WorkerPool

from tests.process.ports import free_port
from tests.process.scripted_worker import ScriptedWorker, output, pack, serving, unpack


@pytest.fixture
async def pool() -> AsyncIterator[WorkerPool]:
    made = WorkerPool("test-gateway")
    yield made
    await made.close()


@pytest.fixture
async def worker() -> ScriptedWorker:
    return ScriptedWorker()


@pytest.fixture
async def address(worker: ScriptedWorker) -> AsyncIterator[str]:
    async with serving(worker) as bound:
        yield bound


def submit(choices: int = 1, deadline_s: float = 0) -> Submit:
    return Submit(
        request_id="r",
        prompt_tokens=2,
        sampling=Sampling(choices=choices, max_tokens=9),
        deadline_s=deadline_s,
    )


PROMPT = pack(1, 2)


async def text(attempt: Attempt) -> list[int]:
    async with asyncio.timeout(60):
        return [i for batch in [b async for b in attempt] for o in batch for i in unpack(o.token_ids)]


async def test_a_long_prompt_goes_up_and_tokens_come_down(
    pool: WorkerPool, worker: ScriptedWorker, address: str
) -> None:
    prompt = bytes(range(256)) * (FRAME_BYTES // 256) * 2 + b"tail"
    attempt = pool.submit(address, submit(), prompt)
    assert (await worker.next("open")).gateway_id == "test-gateway"
    first = await worker.next("submit")
    rest = [await worker.next("prompt") for _ in range(2)]
    assert first.token_ids + rest[0].token_ids + rest[1].token_ids == prompt
    worker.say(output(first.handle, 0, 5, 6))
    worker.say(output(first.handle, 2, 7, end=Ending.STOP))
    assert await text(attempt) == [5, 6, 7]


async def test_one_stream_carries_all_requests_and_cancels_reach_the_worker(
    pool: WorkerPool, worker: ScriptedWorker, address: str
) -> None:
    first, second = (pool.submit(address, submit(), PROMPT) for _ in range(2))
    await worker.next("open")
    handles = [(await worker.next("submit")).handle for _ in range(2)]
    assert handles[0] < handles[1]
    worker.say(output(handles[0], 0, 1), output(handles[1], 0, 2))
    await anext(first)
    first.cancel()
    assert (await worker.next("cancel")).handle == handles[0]
    worker.say(output(handles[0], 1, 9), output(handles[1], 1, 3, end=Ending.LENGTH))
    assert await text(second) == [2, 3]
    assert await text(first) == []
    assert worker.streams == 1
    second.cancel()  # after the end: nothing
    assert worker.received.empty()


async def test_reattaches_after_a_break_without_losing_or_repeating_a_token(
    pool: WorkerPool, worker: ScriptedWorker, address: str
) -> None:
    attempt = pool.submit(address, submit(choices=2), PROMPT)
    await worker.next("open")
    handle = (await worker.next("submit")).handle
    worker.say(output(handle, 0, 10, 11))
    assert unpack((await anext(attempt))[0].token_ids) == [10, 11]
    worker.hang_up()
    reopened = await worker.next("open")
    assert [(r.handle, list(r.next_positions)) for r in reopened.reattach] == [(handle, [2, 0])]
    other = output(handle, 0, 20, end=Ending.STOP)
    other.choice = 1
    worker.say(output(handle, 1, 11, 12), output(handle, 0, 10), other)  # repeats more than was asked
    worker.say(output(handle, 3, 13, end=Ending.STOP))
    assert await text(attempt) == [12, 20, 13]


async def test_what_had_no_answer_yet_is_submitted_again(
    pool: WorkerPool, worker: ScriptedWorker, address: str
) -> None:
    attempt = pool.submit(address, submit(deadline_s=300), PROMPT)
    await worker.next("open")
    first = await worker.next("submit")
    worker.hang_up()
    assert not (await worker.next("open")).reattach
    again = await worker.next("submit")
    assert again.handle > first.handle
    assert again.token_ids == PROMPT
    assert 200 < again.deadline_s < first.deadline_s <= 300
    worker.say(output(first.handle, 0, 66), output(again.handle, 0, 7, end=Ending.STOP))
    assert await text(attempt) == [7]


async def test_a_dead_worker_is_noticed_at_once(pool: WorkerPool, monkeypatch: pytest.MonkeyPatch) -> None:
    # A server that shuts down in this process may still accept a connection and never serve it.
    monkeypatch.setattr(connection, "REATTACH_S", 0.3)
    worker, port = ScriptedWorker(), free_port()
    async with serving(worker, port) as address:
        attempt = pool.submit(address, submit(), PROMPT)
        await worker.next("open")
        handle = (await worker.next("submit")).handle
        worker.say(output(handle, 0, 1))
        await anext(attempt)
    start = time.monotonic()
    with pytest.raises(WorkerLost, match=address):
        await text(attempt)
    with pytest.raises(WorkerLost):
        await text(pool.submit(address, submit(), PROMPT))
    assert time.monotonic() - start < 30
    monkeypatch.setattr(connection, "REATTACH_S", 5.0)
    reborn = ScriptedWorker()
    async with serving(reborn, port):
        answering = asyncio.create_task(_answer(reborn))
        async with asyncio.timeout(60):
            while await _lost(pool.submit(address, submit(), PROMPT)):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        await answering


async def _answer(worker: ScriptedWorker) -> None:
    assert not (await worker.next("open")).reattach
    worker.say(output((await worker.next("submit")).handle, 0, 3, end=Ending.STOP))


async def _lost(attempt: Attempt) -> bool:
    try:
        return await text(attempt) != [3]
    except WorkerLost:
        return True


@pytest.mark.parametrize(
    ("reason", "error"),
    [
        (Ending.FAILED, WorkerLost),
        (Ending.CANCELLED, WorkerLost),
        (Ending.REJECTED, Rejected),
        (Ending.DEADLINE, Rejected),
        (Ending.BAD_REQUEST, BadRequest),
    ],
)
async def test_endings_that_are_errors(
    pool: WorkerPool, worker: ScriptedWorker, address: str, reason: "Ending.Reason", error: type[Exception]
) -> None:
    attempt = pool.submit(address, submit(choices=2), PROMPT)
    await worker.next("open")
    handle = (await worker.next("submit")).handle
    worker.say(output(handle, 0, end=reason))
    with pytest.raises(error, match=r"scripted|deadline"):
        await text(attempt)
    assert (await worker.next("cancel")).handle == handle  # the other choice is not left running


async def test_a_reader_too_far_behind_is_cancelled(
    pool: WorkerPool, worker: ScriptedWorker, address: str
) -> None:
    overrun = asyncio.Event()
    slow = pool.submit(address, submit(), PROMPT, on_overrun=overrun.set)
    quick = pool.submit(address, submit(), PROMPT)
    await worker.next("open")
    handles = [(await worker.next("submit")).handle for _ in range(2)]
    size = STREAM_BACKLOG_BYTES // 8
    for i in range(8):
        worker.say(output(handles[0], i * size // 4, *range(size // 4)))
    worker.say(output(handles[0], 2 * size, 1))
    async with asyncio.timeout(60):
        await overrun.wait()
    assert (await worker.next("cancel")).handle == handles[0]
    worker.say(output(handles[1], 0, 4, end=Ending.STOP))
    assert await text(quick) == [4]
    with pytest.raises(BadRequest, match="stopped reading"):
        await text(slow)


async def test_a_worker_that_accepts_and_never_serves(
    pool: WorkerPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "REATTACH_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(WorkerLost, match="no connection within"):
            await text(pool.submit(address, submit(), PROMPT))


async def test_a_worker_that_computes_for_long_is_waited_for_while_it_answers(
    pool: WorkerPool, worker: ScriptedWorker, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_SILENT_S", 0.01)
    attempt = pool.submit(address, submit(), PROMPT)
    await worker.next("open")
    handle = (await worker.next("submit")).handle
    async with asyncio.timeout(60):
        for _ in range(5):
            await worker.asked.get()
    worker.say(output(handle, 0, 8, end=Ending.STOP))
    assert await text(attempt) == [8]
    assert worker.streams == 1


@pytest.mark.parametrize("begun", [False, True])
async def test_a_worker_that_is_silent_and_does_not_answer_is_given_up(
    pool: WorkerPool, worker: ScriptedWorker, address: str, monkeypatch: pytest.MonkeyPatch, begun: bool
) -> None:
    """One that is stopped keeps its connections, and would take new ones: it is not waited for once more."""
    for name in ("_SILENT_S", "_ANSWER_S"):
        monkeypatch.setattr(connection, name, 0.2)
    worker.answers.clear()
    attempt = pool.submit(address, submit(), PROMPT)
    await worker.next("open")
    handle = (await worker.next("submit")).handle
    if begun:
        worker.say(output(handle, 0, 8))
        assert len(await anext(attempt)) == 1
    with pytest.raises(WorkerLost, match="silent, and does not answer"):
        await text(attempt)
    assert worker.streams == 1


async def test_nobody_listens(pool: WorkerPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "REATTACH_S", 60.0)  # is not waited for
    start = time.monotonic()
    with pytest.raises(WorkerLost):
        await text(pool.submit("127.0.0.1:1", submit(), PROMPT))
    assert time.monotonic() - start < 30
