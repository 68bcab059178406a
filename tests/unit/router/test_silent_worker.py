"""A worker that announces nothing, as the router core sees it."""

from warmfleet_proto import router_pb2 as pb
from warmfleet_router.core import RouterCore
from warmfleet_router.routing import Routing

from tests.unit.router.fleet_of import FakeWorker, ask, tokens

PROMPT = tokens((300, 320))  # 20 blocks


def silent(**status: object) -> tuple[RouterCore, FakeWorker]:
    core = RouterCore(Routing(), 1)
    worker = FakeWorker(core, "w", status={"silent": True, "total_blocks": 100, **status})
    core.roster.add(worker.address)
    core.roster.joined(worker.address, worker._status(), 0.0)
    worker.report(0.0)
    core.tick(0.5)
    return core, worker


def serve(core: RouterCore, prompt: bytes, now: float, cached: int, **fields: object) -> int:
    """One request through to its end; the overlap that was expected."""
    placement = core.route(ask(prompt, **fields), now)
    unknown = cached < 0
    core.progress(
        pb.ProgressRequest(booking=placement.booking, cached_tokens=max(cached, 0), cached_unknown=unknown),
        now,
    )
    core.finish(pb.FinishRequest(booking=placement.booking, outcome=pb.FinishRequest.OK), now)
    return placement.expected_tokens


def test_what_it_has_computed_counts_as_held() -> None:
    core, _ = silent()
    assert serve(core, PROMPT, 1.0, 0) == 0
    assert serve(core, PROMPT + tokens((9, 64)), 2.0, 320) == 320
    assert core.workers(2.0)[0].held_blocks == 24


def test_its_value_is_multiplied_by_the_confidence() -> None:
    core, _ = silent()
    serve(core, PROMPT, 1.0, 0)
    for number in range(40):
        serve(core, PROMPT, 2.0 + number, 160)  # half of it, again and again
    confidence = core.workers(50.0)[0].confidence
    assert confidence is not None
    assert 0.49 < confidence < 0.52
    placement = core.route(ask(PROMPT + tokens((9, 64))), 50.0)
    assert placement.expected_tokens == int(320 * confidence)
    assert placement.available_tokens == 320


def test_a_backend_that_tells_no_cached_tokens_corrects_nothing() -> None:
    core, _ = silent()
    for number in range(40):
        serve(core, PROMPT, 1.0 + number, -1)
    assert core.workers(50.0)[0].confidence == 1.0
    assert serve(core, PROMPT + tokens((9, 64)), 50.0, -1) == 320


def test_a_prompt_that_may_not_read_the_cache_says_nothing() -> None:
    core, _ = silent()
    serve(core, PROMPT, 1.0, 0)
    serve(core, PROMPT, 2.0, 0, bypass_cache=True)
    assert core.workers(3.0)[0].confidence == 1.0


def test_its_capacity_bounds_what_it_is_taken_to_hold() -> None:
    core, _ = silent(total_blocks=16)
    serve(core, PROMPT, 1.0, 0)
    assert core.workers(1.0)[0].held_blocks == 16
    assert serve(core, PROMPT, 2.0, 256) == 256  # the root's end
    serve(core, tokens((900, 128)), 3.0, 0)
    assert serve(core, PROMPT, 4.0, 128) == 128
