"""Several routers as one: who is asked, who hears of it, what happens while some do not answer."""

import asyncio
from typing import Any

import pytest
from warmfleet_proto import router_pb2 as pb
from warmfleet_proto.errors import BadRequest, Rejected
from warmfleet_router import several
from warmfleet_router.client import Away, LocalRouter
from warmfleet_router.several import Named, SeveralRouters

from tests.unit.router.fleet_of import FakeWorker, ask, fleet_of, tokens


class Wire:
    """The way to a real router, which a test cuts."""

    def __init__(self, seed: int) -> None:
        self.core, self.workers = fleet_of(2, seed=seed)
        self.cut = self.hangs = False
        self.delay_s = 0.0
        self.router = LocalRouter(self.core, lambda: 0.0)

    def __getattr__(self, name: str) -> Any:
        async def call(request: Any) -> Any:
            if isinstance(request, pb.RouteRequest) and self.cut:
                request.keys = b""  # as a remote one does on its way
            if self.hangs:
                await asyncio.Event().wait()
            if self.cut:
                raise Away("cut")
            await asyncio.sleep(self.delay_s)
            return await getattr(self.router, name)(request)

        return call

    @property
    def bookings(self) -> int:
        return self.core.totals(0.0).bookings


@pytest.fixture
def wires() -> list[Wire]:
    return [Wire(seed) for seed in (1, 2, 3)]


@pytest.fixture
def routers(wires: list[Wire], monkeypatch: pytest.MonkeyPatch) -> SeveralRouters:
    monkeypatch.setattr(several, "TRY_S", 1.0)
    monkeypatch.setattr(several, "BEAT_S", 1.0)
    return SeveralRouters([Named(f"r{i}:1", wire) for i, wire in enumerate(wires)], lambda: 0.0)  # type: ignore[arg-type]


def beat(*bookings: int) -> pb.HeartbeatRequest:
    return pb.HeartbeatRequest(gateway_id="g", live=pb.LiveBookings(bookings=bookings))


async def test_prompts_that_begin_alike_meet_the_same_router_and_others_are_spread(
    routers: SeveralRouters, wires: list[Wire]
) -> None:
    for length in (300, 400, 500):
        await routers.route(ask(tokens((7, length))))
    assert sorted(wire.bookings for wire in wires) == [0, 0, 3]
    for first in range(30):
        await routers.route(ask(tokens((100 * first, 300))))
    assert min(wire.bookings for wire in wires) > 3


async def test_who_has_placed_it_hears_of_it(routers: SeveralRouters, wires: list[Wire]) -> None:
    placed = [(await routers.route(ask(tokens((100 * n, 300))))).booking for n in range(10)]
    assert (await routers.heartbeat(beat(*placed))).bookings == 10
    await routers.progress(pb.ProgressRequest(booking=placed[0], cached_tokens=1))
    assert sum(wire.core.counters.progress for wire in wires) == 1
    for booking in placed:
        ended = pb.FinishRequest(booking=booking, outcome=pb.FinishRequest.OK)
        assert (await routers.finish(ended)).known
        assert not (await routers.finish(ended)).known
    assert [wire.bookings for wire in wires] == [0, 0, 0]
    assert all(wire.core.counters.finished_unknown == 0 for wire in wires)


@pytest.mark.parametrize("how", ["cut", "hangs"])
async def test_another_one_is_asked_while_one_does_not_answer(
    routers: SeveralRouters, wires: list[Wire], how: str
) -> None:
    first = await routers.route(ask(tokens((7, 300))))
    (gone,) = [wire for wire in wires if wire.bookings]
    setattr(gone, how, True)
    for _ in range(3):
        request = ask(tokens((7, 300)))
        placed = await routers.route(request)
        assert placed.booking != first.booking
    assert sum(wire.bookings for wire in wires) == 4
    assert gone.bookings == 1
    assert routers.answering() == 2
    with pytest.raises(Rejected) if how == "cut" else pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await routers.finish(pb.FinishRequest(booking=first.booking, outcome=pb.FinishRequest.OK))
    workers = await routers.list_workers(pb.ListWorkersRequest())
    assert len(workers.workers) == 2
    setattr(gone, how, False)
    await routers.heartbeat(beat())
    assert routers.answering() == 3
    await routers.route(ask(tokens((7, 300))))
    assert gone.bookings == 2


async def test_the_only_one_that_answers_has_its_time(routers: SeveralRouters, wires: list[Wire]) -> None:
    await routers.route(ask(tokens((7, 300))))
    (slow,) = [wire for wire in wires if wire.bookings]
    for wire in wires:
        wire.cut = wire is not slow
    await routers.heartbeat(beat())
    slow.delay_s = 2 * several.TRY_S
    await routers.route(ask(tokens((7, 300))))
    assert slow.bookings == 2
    assert routers.answering() == 1


async def test_nobody_answers(routers: SeveralRouters, wires: list[Wire]) -> None:
    for wire in wires:
        wire.cut = True
    for call in (routers.route(ask(tokens((7, 300)))), routers.heartbeat(beat())):
        with pytest.raises(Rejected, match="no router answers"):
            await call
    wires[1].cut = False
    assert (await routers.route(ask(tokens((7, 300))))).worker


async def test_what_a_router_decides_is_told(routers: SeveralRouters, wires: list[Wire]) -> None:
    """One that refuses may know fewer workers than the next; a bad request is bad everywhere."""
    with pytest.raises(BadRequest, match="more than the context"):
        await routers.route(ask(tokens((7, 300)), max_tokens=1 << 30))
    assert [wire.core.counters.bad_requests for wire in wires].count(1) == 1
    for wire in wires[1:]:
        for worker in wire.workers:
            wire.core.roster.broken(worker.address, 0.0)
    placed = [await routers.route(ask(tokens((100 * n, 300)))) for n in range(10)]
    assert wires[0].bookings == len(placed)
    wires[0].cut = True
    with pytest.raises(Rejected, match="can take the request now"):
        await routers.route(ask(tokens((7, 300))))


async def test_a_model_that_one_does_not_know_yet_is_asked_of_the_next(
    routers: SeveralRouters, wires: list[Wire]
) -> None:
    def asked() -> pb.RouteRequest:
        return ask(tokens((7, 300)), model="new")

    with pytest.raises(BadRequest, match="not served") as none:
        await routers.route(asked())
    assert none.value.status == 404
    assert [wire.core.counters.bad_requests for wire in wires] == [1, 1, 1]
    for wire in wires:
        first = FakeWorker(wire.core, "n", status={"model": "new", "model_fingerprint": b"n" * 32})
        first.join(-60.0)
        assert (await routers.route(asked())).worker == "n"
        assert (await routers.explain(asked())).chosen.worker == "n"
        wire.core.roster.broken(first.address, 0.0)
        with pytest.raises(Rejected, match="can take the request now"):
            await routers.route(asked())
        wire.cut = True  # whoever is asked before or after it
        with pytest.raises(BadRequest, match="not served") if wire is not wires[-1] else pytest.raises(Away):
            await routers.route(asked())


async def test_workers_are_shown_as_a_router_sees_them_that_is_in_touch(
    routers: SeveralRouters, wires: list[Wire]
) -> None:
    for wire in wires[:2]:
        wire.core.roster.broken(wire.workers[0].address, 0.0)
    shown = await routers.list_workers(pb.ListWorkersRequest())
    assert [worker.state for worker in shown.workers] == ["healthy", "healthy"]
