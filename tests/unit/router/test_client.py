"""What leaves a gateway for its router: keys where it knows how the workers hash, token ids elsewhere."""

import asyncio
import gc
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from warmfleet_proto import router_pb2 as rpb
from warmfleet_proto.errors import BadRequest
from warmfleet_proto.limits import PROMPT_BYTES
from warmfleet_router.client import LocalRouter, RemoteRouter
from warmfleet_router.core import RouterCore

from tests.unit.router.fleet_of import BLOCK, ask, fleet_of, keys_of, tokens

PROMPT = tokens((1, 20 * BLOCK + 3))


class Wire:
    """A channel that ends in a core of this process, and what was sent over it."""

    def __init__(self, core: RouterCore) -> None:
        self._local = LocalRouter(core, lambda: 1.0)
        self.sent: list[Any] = []

    def unary_unary(self, path: str, *_: Any, **__: Any) -> Callable[..., Awaitable[Any]]:
        names = {"Route": "route", "ListWorkers": "list_workers", "Explain": "explain"}
        method = getattr(self._local, names.get(path.rpartition("/")[2], ""), None)

        async def call(request: Any, **_: Any) -> Any:
            self.sent.append(request)
            assert method is not None
            return await method(request)

        return call


def remote(core: RouterCore) -> tuple[RemoteRouter, Wire]:
    wire = Wire(core)
    return RemoteRouter(wire), wire  # type: ignore[arg-type]


async def test_token_ids_leave_as_keys_once_the_workers_are_known() -> None:
    core, (worker, _) = fleet_of(2)
    worker.store(PROMPT, 1.0)
    router, wire = remote(core)

    def asked(**prompt: object) -> rpb.RouteRequest:
        return ask(request_id="r", tenant="t", choices=2, exclude=["w1"], **prompt)

    ids = {"token_ids": PROMPT}
    keys = {"keys": keys_of(PROMPT), "prompt_tokens": 20 * BLOCK + 3}
    first = await router.route(asked(**ids))
    assert wire.sent.pop() == asked(**ids)
    await router.list_workers(rpb.ListWorkersRequest())
    second = await router.route(asked(**ids))
    assert wire.sent.pop() == asked(**keys)
    await router.explain(asked(**ids))
    assert wire.sent.pop() == asked(**keys)
    assert first.worker == second.worker == "w0"
    assert first.expected_tokens == second.expected_tokens == 20 * BLOCK


async def test_a_tenants_salt_is_in_its_keys() -> None:
    core, (worker,) = fleet_of(1)
    worker.store(PROMPT, 1.0, salt=b"s")
    router, _ = remote(core)
    await router.list_workers(rpb.ListWorkersRequest())
    assert (await router.route(ask(PROMPT, salt=b"s"))).expected_tokens == 20 * BLOCK
    assert (await router.route(ask(PROMPT))).expected_tokens == 0


async def test_a_model_whose_workers_hash_differently_is_hashed_by_the_router() -> None:
    core, workers = fleet_of(2)
    workers[1].status = {"block_size": 2 * BLOCK}
    workers[1].restart(1.0)
    router, wire = remote(core)
    await router.list_workers(rpb.ListWorkersRequest())
    await router.route(ask(PROMPT))
    assert wire.sent.pop().token_ids == PROMPT


async def test_a_further_name_of_workers_that_hash_differently_counts_too() -> None:
    """A server's adapter or second name, which is the name of our own workers' model."""
    core, (_, server) = fleet_of(2)
    server.status = {"model": "base", "models": ["m", "also"], "block_size": 2 * BLOCK}
    server.restart(1.0)
    router, wire = remote(core)
    await router.list_workers(rpb.ListWorkersRequest())
    await router.route(ask(PROMPT))
    assert wire.sent.pop().token_ids == PROMPT
    await router.route(ask(PROMPT, model="also"))
    assert wire.sent.pop().keys, "there is one way only"


async def test_what_the_router_must_refuse_reaches_it_as_it_is() -> None:
    core, _ = fleet_of(1)
    router, _ = remote(core)
    await router.list_workers(rpb.ListWorkersRequest())
    for token_ids, said, message in (
        (b"12345", 0, "not a multiple of 4"),
        (b"", 0, "the prompt is empty"),
        (PROMPT, 9, "prompt_tokens says 9, not 323"),
    ):
        with pytest.raises(BadRequest, match=message):
            await router.route(ask(token_ids, prompt_tokens=said))
    with pytest.raises(BadRequest, match="'x' is not served"):
        await router.route(ask(PROMPT, model="x"))


@pytest.mark.parametrize(("far", "kinds"), [(False, 1), (False, 2), (True, 1)])
async def test_the_longest_prompt_is_hashed_without_holding_up_the_loop(far: bool, kinds: int) -> None:
    """Thread time between two turns of the loop: 1 to 17 ms of the 30 to 70 that all of it takes, of which
    most is hashing."""
    core, workers = fleet_of(kinds)
    for n, worker in enumerate(workers):
        worker.status = {"max_context": 1 << 22, "block_size": BLOCK << n}
        worker.restart(1.0)
    router = remote(core)[0] if far else LocalRouter(core, lambda: 1.0)
    await router.list_workers(rpb.ListWorkersRequest())
    asking = asyncio.create_task(router.route(ask(random.Random(1).randbytes(PROMPT_BYTES))))
    gc.disable()  # it would walk over all that the test run holds
    try:
        turns, last = [], time.thread_time()
        while not asking.done():
            await asyncio.sleep(0)
            now = time.thread_time()
            turns.append(now - last)
            last = now
    finally:
        gc.enable()
    assert (await asking).worker
    assert max(turns) < sum(turns) / 2
