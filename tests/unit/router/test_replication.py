"""Which copies are ordered, from whom, to whom, and what the router makes of their ends."""

from collections import Counter

import pytest
from warmfleet_proto import router_pb2 as rpb
from warmfleet_proto.limits import GRANT_TTL_S
from warmfleet_proto.transfer_pb2 import Pulled
from warmfleet_router.core import RouterCore
from warmfleet_router.grant import claims_of
from warmfleet_router.moving.replication import LATE_S, MOST_FROM_DRAINING, MOST_TO, REST_S, SAVE_S, Order

from tests.unit.router.fleet_of import BLOCK, FakeWorker, ask, fleet_of, hashes_of, keys_of, tokens
from tests.unit.router.test_pulls import TOKEN_BYTES

PREFIX = tokens((1, 2048))
BYTES = 2048 * TOKEN_BYTES


def givers(count: int = 3, **routing: object) -> tuple[RouterCore, list[FakeWorker]]:
    """Workers that give blocks; the first holds PREFIX. No request pulls."""
    core, workers = fleet_of(count, **{"pulls": False, **routing})
    for worker in workers:
        worker.status |= {"gives_blocks": True, "block_bytes": BLOCK * TOKEN_BYTES}
        worker.join(-60.0)
    workers[0].store(PREFIX, 0.0)
    for worker in workers:
        worker.report(0.0, free_blocks=1000)
    core.tick(0.0)
    return core, workers


def served(
    core: RouterCore, worker: FakeWorker, queued: int = 0, now: float = 0.0, first: int = 9000
) -> None:
    """One more request for PREFIX at its holder, behind so many tokens."""
    worker.report(now, prefill_tokens=queued, free_blocks=1000)
    prompt = tokens((1, 2048), (first, 20))
    placed = core.route(ask(prompt), now)
    assert placed.worker == worker.name, "computing all of it takes longer"
    core.progress(rpb.ProgressRequest(booking=placed.booking, cached_tokens=2048), now)
    worker.report(now, free_blocks=1000)


def orders(core: RouterCore, now: float = 0.1) -> list[Order]:
    core.tick(now)
    return core.replication.take_orders()


def hot(core: RouterCore, worker: FakeWorker) -> None:
    """Its requests wait .1 s each, while others are idle."""
    for n in range(3):
        served(core, worker, queued=1000, first=9000 + 100 * n)


def test_a_prefix_whose_requests_wait_is_copied() -> None:
    core, workers = givers()
    hot(core, workers[0])
    (order,) = orders(core)
    assert (order.source.name, order.first, order.blocks) == ("w0", 0, 128)
    assert order.target.name in ("w1", "w2")
    assert order.keys == keys_of(PREFIX)
    assert order.bytes == BYTES
    assert not order.leaving
    hot(core, workers[0])
    assert orders(core, 0.2) == [], "it is on its way"
    claims = claims_of(order, 1.0)
    assert (claims.source, claims.target, claims.epoch, claims.first) == ("w0", order.target.name, 1, 0)
    assert (claims.keys, claims.expires_s) == (keys_of(PREFIX), 1.0 + GRANT_TTL_S - 0.0)


def test_one_whose_requests_wait_for_nothing_is_not() -> None:
    core, workers = givers()
    for n in range(9):
        served(core, workers[0], first=9000 + 100 * n)
    assert orders(core) == []


def test_nor_one_whose_requests_wait_for_less_than_a_copy_costs() -> None:
    core, workers = givers()
    served(core, workers[0], queued=20)
    assert next(iter(core.roster.groups.values())).wanted.saves(1) > 0
    assert orders(core) == []


@pytest.mark.parametrize("setting", [{"replicate": False}, {"link_bytes_per_s": 1e5}])
def test_nor_where_it_is_not_wanted_or_the_link_is_too_slow(setting: dict[str, object]) -> None:
    core, workers = givers(**setting)
    hot(core, workers[0])
    assert orders(core) == []


def test_while_copies_are_made_ahead_no_request_makes_one() -> None:
    core, workers = givers()
    assert next(iter(core.roster.groups.values())).copies_ahead
    for worker in workers[1:]:
        worker.status["gives_blocks"] = False
        worker.join(0.0)
    core.tick(0.1)
    assert not next(iter(core.roster.groups.values())).copies_ahead, "there is nobody to bring them"
    for setting in ({"replicate": False}, {"policy": "least_loaded"}):
        core, _ = givers(**setting)
        assert not next(iter(core.roster.groups.values())).copies_ahead


def test_only_what_the_target_lacks_is_brought() -> None:
    core, workers = givers(2)
    workers[1].store(tokens((1, 1024)), 0.0)
    hot(core, workers[0])
    (order,) = orders(core)
    assert (order.first, order.blocks, order.bytes) == (64, 64, BYTES / 2)
    assert claims_of(order, 0.0).keys == keys_of(PREFIX)[64 * 8 :]


def test_the_copy_counts_once_its_presence_has_been_told() -> None:
    core, workers = givers(2)
    hot(core, workers[0])
    (order,) = orders(core)
    core.brought(order.id, Pulled(tokens=2048, bytes=BYTES, seconds=0.1), 0.2)
    workers[0].report(0.2, prefill_tokens=3000)
    explained = core.explain(ask(tokens((1, 2048), (9900, 20))), 0.2)
    assert {c.worker: c.overlap_tokens for c in explained.candidates} == {"w0": 2048, "w1": 0}
    workers[1].store(PREFIX, 0.2)
    explained = core.explain(ask(tokens((1, 2048), (9900, 20))), 0.2)
    assert {c.worker: c.overlap_tokens for c in explained.candidates} == {"w0": 2048, "w1": 2048}
    (moved,) = core.moves
    assert (moved.source, moved.target, moved.ahead_bytes, moved.evacuated_bytes) == ("w0", "w1", BYTES, 0)
    assert core.counters.replications == 1


def test_nobody_brings_more_than_a_few_at_once() -> None:
    core, workers = givers(replicate_bytes_per_s=1e12)
    for n in range(4):
        holder, prefix = workers[n // 2], (100_035 + 100_000 * n, 2048)  # for all of them w2 would be best
        holder.store(tokens(prefix), 0.0)
        for m in range(4):
            holder.report(0.0, prefill_tokens=1000, free_blocks=1000)
            placed = core.route(ask(tokens(prefix, (9000 + 100 * m, 20))), 0.0)
            core.progress(rpb.ProgressRequest(booking=placed.booking, cached_tokens=2048), 0.0)
            holder.report(0.0, free_blocks=1000)
    brings = Counter(order.target.name for order in orders(core))
    assert brings.total() > MOST_TO
    assert max(brings.values()) == MOST_TO


@pytest.mark.parametrize("end", [None, Pulled(failure="gone"), "silence"])
def test_what_did_not_come_rests(end: Pulled | str | None) -> None:
    core, workers = givers(2)
    hot(core, workers[0])
    (order,) = orders(core)
    now = 0.2
    if isinstance(end, str):
        now = order.within_s + LATE_S + 0.2
        core.tick(now)
    else:
        core.brought(order.id, end, now)
    assert core.counters.bring_failures == 1
    served(core, workers[0], 1000, now)
    assert orders(core, now + 0.1) == []
    served(core, workers[0], 1000, now + REST_S)
    assert len(orders(core, now + REST_S + 0.1)) == 1


def test_the_budget_is_kept() -> None:
    """Of a second and worker; what was not spent for SAVE_S is there at once."""
    core, workers = givers(2, replicate_bytes_per_s=2.5 * BYTES / (2 * SAVE_S))
    made, now = 0, 10.0
    for n in range(20):
        prefix = ((100_000 * (n + 1), 2048), (9000, 20))
        workers[0].store(tokens(prefix[0]), now)
        workers[0].report(now, prefill_tokens=1000, free_blocks=1000)
        placed = core.route(ask(tokens(*prefix)), now)
        core.progress(rpb.ProgressRequest(booking=placed.booking, cached_tokens=2048), now)
        for order in orders(core, now):
            made += 1
            core.brought(order.id, Pulled(tokens=2048, bytes=BYTES, seconds=0.1), now)
    assert made == 3, "what has been saved is spent, and a little more, since prefixes are not cut"


# ---- a worker that drains


def draining(workers: list[FakeWorker], now: float, leaves_s: float = 20.0) -> None:
    workers[0].report(now, draining=True, leaves_s=leaves_s)


def test_what_only_a_draining_worker_holds_is_brought_elsewhere() -> None:
    core, workers = givers()
    for n in range(2):
        served(core, workers[0], first=9000 + 100 * n)
    assert orders(core) == []
    draining(workers, 0.2, leaves_s=3.0)
    (order,) = orders(core, 0.3)
    assert (order.source.name, order.blocks, order.leaving, order.within_s) == ("w0", 128, True, 3.0)
    core.brought(order.id, Pulled(tokens=2048, bytes=BYTES, seconds=0.1), 0.4)
    assert orders(core, 0.5) == [], "once"
    (moved,) = core.moves
    assert moved.evacuated_bytes == BYTES
    assert core.counters.evacuations == 1


def test_what_others_hold_too_may_go() -> None:
    core, workers = givers()
    workers[2].store(PREFIX, 0.0)
    served(core, workers[0])
    draining(workers, 0.2)
    assert orders(core, 0.3) == []


def test_the_hottest_first_and_a_few_at_once_within_the_budget() -> None:
    core, workers = givers(2, evacuate_bytes=5.5 * BYTES)
    for n in range(8):
        prefix = (100_000 * (n + 1), 2048)
        workers[0].store(tokens(prefix), 0.0)
        for m in range(n + 1):
            core.route(ask(tokens(prefix, (9000 + 100 * m, 20)), exclude=["w1"]), 0.0)
    core.tick(0.1)
    core.replication.take_orders()
    draining(workers, 0.2)
    taken: list[Order] = []
    for step in range(9):
        now = 0.3 + 0.1 * step
        new = orders(core, now)
        taken += new
        assert len(new) <= MOST_TO < MOST_FROM_DRAINING
        for order in new:
            core.brought(order.id, Pulled(tokens=2048, bytes=BYTES, seconds=0.1), now)
    hottest = [hashes_of(tokens((100_000 * n, 2048)))[0][:8] for n in (8, 7, 6, 5, 4, 3)]
    assert [order.keys[:8] for order in taken] == hottest, "six of eight: the last one is above the budget"


def test_of_a_drained_worker_that_has_gone_nothing_is_kept() -> None:
    core, workers = givers()
    served(core, workers[0])
    draining(workers, 0.2)
    (order,) = orders(core, 0.3)
    core.brought(order.id, Pulled(tokens=2048, bytes=BYTES, seconds=0.1), 0.4)
    core.roster.remove(workers[0].address, 0.5)
    core.tick(0.6)
    assert not core.replication._leaving
