"""Where a worker has no memory for a prompt, the wait for what its sequences free is in the price."""

import pytest
from warmfleet_proto import worker_pb2 as pb
from warmfleet_router.core import RouterCore

from tests.unit.router.fleet_of import BLOCK, BLOCKS, FakeWorker, ask, fleet_of, tokens

SEQUENCES, CONTEXT = 4, 4000
PROMPT = 1024  # tokens
# By the guesses of prices/pricing: of one step of so many sequences, and of the 127 steps of a completion.
DECODE_S = 127 * (1e-2 + SEQUENCES * 1e-4)


def waits(core: RouterCore, now: float = 0.0, first: int = 1) -> dict[str, float]:
    """Of a prompt that begins with this token, by worker."""
    told = core.explain(ask(tokens((first, PROMPT))), now)
    return {c.worker: sum(t.seconds for t in c.terms if t.name == "wait") for c in told.candidates}


def full(worker: FakeWorker, free: int, cached: int = 0) -> None:
    worker.report(0.0, running=SEQUENCES, context_tokens=CONTEXT, free_blocks=free, cached_blocks=cached)


def seconds(lacking: int, available: int) -> float:
    """Until so many tokens are free, where so many blocks are not in use."""
    return lacking * DECODE_S / ((BLOCKS - available) * BLOCK)


def test_what_a_prompt_lacks_is_waited_for() -> None:
    core, (one, other) = fleet_of(2)
    full(one, free=10, cached=20)
    full(other, free=10, cached=54)
    found = waits(core)
    assert found["w0"] == pytest.approx(seconds(PROMPT - 30 * BLOCK, 30))
    assert found["w1"] == 0.0
    assert core.route(ask(tokens((1, PROMPT))), 0.0).worker == "w1"


def test_what_it_holds_already_takes_no_more() -> None:
    core, (one, _) = fleet_of(2)
    one.store(tokens((1, PROMPT // 2)), 0.0)
    full(one, free=10, cached=20)
    assert waits(core)["w0"] == pytest.approx(seconds(PROMPT // 2 - 30 * BLOCK, 30))


def test_what_is_on_its_way_takes_its_part() -> None:
    core, (only,) = fleet_of(1)
    full(only, free=100)
    before = waits(core, first=9000)["w0"]
    core.route(ask(tokens((1, PROMPT))), 0.0)
    more = waits(core, first=9000)["w0"] - before
    assert before == 0.0
    prefill_s = core.roster.fleet.workers[only.address].rates.prefill_s(PROMPT, 0)
    assert more == pytest.approx(prefill_s + seconds(2 * PROMPT - 100 * BLOCK, 100))


@pytest.mark.parametrize("load", [{"running": 0, "free_blocks": 0}, {"running": SEQUENCES}])
def test_where_nothing_decodes_or_all_is_free_nothing_is_waited_for(load: dict[str, int]) -> None:
    core, (only,) = fleet_of(1)
    only.report(0.0, **load)
    assert waits(core)["w0"] == 0.0


def test_a_server_that_tells_no_memory_is_not_taken_to_have_none() -> None:
    core, _ = fleet_of(0)
    worker = FakeWorker(core, "w", status={"anonymous_load": True})
    worker.join(-60.0)
    load = pb.WorkerLoad(running=SEQUENCES, context_tokens=CONTEXT)
    worker.say(pb.WatchKvResponse(epoch=worker.epoch, load=load), 0.0)
    assert waits(core)["w"] == 0.0
