"""Blocks brought from a peer: when, from whom, at what price, and what the router learns of it."""

import pytest
from warmfleet_proto import router_pb2 as rpb
from warmfleet_router.core import RouterCore
from warmfleet_router.prices.links import MEMORY_S, Links
from warmfleet_router.prices.pressure import Pressure

from tests.unit.router.fleet_of import BLOCK, BLOCKS, FakeWorker, ask, fleet_of, tokens

PROMPT = tokens((1, 4000))  # takes .4 s by the first guess
TOKEN_BYTES = 1000
NOW = 0.1


def givers(count: int, **routing: object) -> tuple[RouterCore, list[FakeWorker]]:
    """A fleet whose workers give blocks; the first holds the prompt and is busy."""
    core, workers = fleet_of(count, **routing)
    for worker in workers:
        worker.status |= {"gives_blocks": True, "block_bytes": BLOCK * TOKEN_BYTES}
        worker.join(-60.0)
    workers[0].store(PROMPT, 0.0)
    workers[0].report(0.0, running=1, waiting=9, prefill_tokens=50_000)
    core.tick(0.0)
    return core, workers


def place(core: RouterCore, now: float = NOW, **fields: object) -> rpb.Placement:
    return core.route(ask(PROMPT, **fields), now)


def seconds(of: rpb.Placement | rpb.Candidate) -> dict[str, float]:
    return {term.name: term.seconds for term in of.terms}


def test_an_idle_worker_pulls_what_a_busy_one_holds() -> None:
    core, _ = givers(3)
    placement = place(core)
    pull = placement.pull
    assert placement.action == rpb.Placement.PULL
    assert placement.worker != "w0"
    assert (pull.source, pull.address) == ("w0", "w0:1")
    assert (pull.from_tokens, pull.tokens) == (0, 3984), "all full blocks but the last token's"
    assert placement.expected_tokens == 3984
    assert seconds(placement)["bring"] == pytest.approx(0.006, rel=0.1)
    assert pull.within_s > 0.3, "about what computing it would take"


@pytest.mark.parametrize(
    "reason", ["forbidden", "not given", "not taken", "slow link", "no cached reads", "silent", "lost"]
)
def test_it_computes_where_it_cannot_or_should_not_pull(reason: str) -> None:
    core, workers = givers(
        3, pulls=reason != "forbidden", link_bytes_per_s=1e6 if reason == "slow link" else 0.0
    )
    if reason == "not given":
        workers[0].status["gives_blocks"] = False
        workers[0].join(0.0)
    if reason == "not taken":
        for worker in workers[1:]:
            worker.status["gives_blocks"] = False
            worker.join(0.0)
    if reason == "lost":
        core.roster.broken(workers[0].address, NOW)
    now = NOW
    if reason == "silent":  # its stream is open, and nothing comes
        for tick in range(1, 15):
            now = NOW + 0.1 * tick
            for worker in workers[1:]:
                worker.report(now)
            core.tick(now)
    placement = place(core, now, bypass_cache=reason == "no cached reads")
    assert placement.action == rpb.Placement.SERVE
    assert not placement.HasField("pull")


@pytest.mark.parametrize("told", ["reported", "booked"])
def test_nothing_is_pulled_where_others_wait_for_all_of_the_memory(told: str) -> None:
    """The prompt has 249 full blocks of its own."""
    core, workers = givers(3)

    def speak_for(blocks: int) -> None:
        for worker in workers[1:]:
            if told == "reported":
                worker.report(NOW, wanted_blocks=blocks)
            else:
                core.roster.fleet.workers[worker.address].booked.pulling = blocks * BLOCK

    speak_for(BLOCKS - 248)
    assert place(core).action == rpb.Placement.SERVE
    speak_for(BLOCKS - 249)
    assert place(core).action == rpb.Placement.PULL


def test_what_a_booking_pulls_counts_until_its_first_token_or_its_end() -> None:
    core, _ = givers(3)
    workers = core.roster.fleet.workers.values()
    first, second = place(core), place(core)
    assert sum(w.booked.pulling for w in workers) == first.pull.tokens + second.pull.tokens > 0
    core.progress(rpb.ProgressRequest(booking=first.booking, cached_tokens=3984), NOW)
    assert sum(w.booked.pulling for w in workers) == second.pull.tokens
    for placement in (first, second):
        core.finish(rpb.FinishRequest(booking=placement.booking, outcome=rpb.FinishRequest.OK), NOW)
    assert [w.booked.pulling for w in workers] == [0, 0, 0]


def test_the_holder_serves_while_it_is_free() -> None:
    core, workers = givers(3)
    workers[0].report(NOW)
    placement = place(core)
    assert (placement.worker, placement.action) == ("w0", rpb.Placement.SERVE)


def test_pulls_from_one_source_wait_for_each_other() -> None:
    core, workers = givers(3)
    other = tokens((9000, 4000))
    workers[0].store(other, 0.0)
    alone = seconds(core.explain(ask(other), NOW).chosen)["bring"]
    assert place(core).action == rpb.Placement.PULL
    assert seconds(core.explain(ask(other), NOW).chosen)["bring"] > alone + 0.003
    assert seconds(core.explain(ask(other), NOW + 1.0).chosen)["bring"] == pytest.approx(alone)


def test_it_learns_what_a_link_carries() -> None:
    core, _ = givers(2)
    for i in range(20):
        placement = place(core, NOW + i)
        if placement.action == rpb.Placement.PULL:
            core.progress(
                rpb.ProgressRequest(
                    booking=placement.booking,
                    cached_tokens=placement.expected_tokens,
                    pulled_tokens=placement.pull.tokens,
                    pulled_bytes=placement.pull.tokens * TOKEN_BYTES,
                    pull_s=8.0,
                ),
                NOW + i,
            )
        core.finish(rpb.FinishRequest(booking=placement.booking, outcome=rpb.FinishRequest.OK), NOW + i)
    assert place(core, NOW + 20).action == rpb.Placement.SERVE


def test_an_unmeasured_pair_is_like_the_others() -> None:
    links, (a, b, c) = Links(1e9), "abc"
    for _ in range(50):
        links.observe(a, b, 100_000_000, 1.0, NOW)
    assert sum(links.seconds(a, b, 1e8, NOW)) == pytest.approx(1.0, rel=0.05)
    assert sum(links.seconds(a, c, 1e8, NOW)) == pytest.approx(1.0, rel=0.05)
    assert sum(links.seconds(a, a, 1e8, NOW)) == pytest.approx(0.012), "its own tiers are another thing"
    for _ in range(50):
        links.observe(a, c, 100_000_000, 0.01, NOW)
    assert sum(links.seconds(a, c, 1e8, NOW)) == pytest.approx(0.01, rel=0.1)
    assert sum(links.seconds(a, b, 1e8, NOW)) == pytest.approx(1.0, rel=0.05)


def test_pressure_is_the_chance_that_an_evicted_block_is_missed() -> None:
    pressure = Pressure()
    pressure.observe(0, 5, 100)
    assert pressure.reuse == 0.0, "nothing was evicted"
    pressure.observe(30, 10, 100)
    assert pressure.reuse == pytest.approx(0.25)
    for _ in range(9):
        pressure.observe(100, 0, 100)
    assert pressure.reuse < 0.001, "the past fades with what is evicted"


def test_displaced_blocks_cost_what_computing_them_again_would() -> None:
    core, workers = fleet_of(2)
    for worker in workers:
        worker.report(0.0, evictions_total=100, late_hits_total=100, free_blocks=0)
    workers[1].report(0.0, evictions_total=100, late_hits_total=100, free_blocks=1000)
    terms = {
        c.worker: {t.name: t.seconds for t in c.terms} for c in core.explain(ask(PROMPT), NOW).candidates
    }
    assert terms["w0"]["eviction"] == pytest.approx(0.5 * terms["w0"]["prefill"], rel=0.1)
    assert "eviction" not in terms["w1"]


@pytest.mark.parametrize("bytes_per_s", [2e6, 3e7, 1e9, 5e10])
def test_a_link_is_known_after_one_pull(bytes_per_s: float) -> None:
    links, (a, b) = Links(), "ab"
    links.observe(a, b, int(bytes_per_s), 1.002, NOW)
    assert sum(links.seconds(a, b, bytes_per_s, NOW)) == pytest.approx(1.002, rel=0.03)


def pulled(core: RouterCore, **report: object) -> rpb.Placement:
    """A placement that pulls, and how that went."""
    placement = place(core)
    assert placement.action == rpb.Placement.PULL
    core.progress(rpb.ProgressRequest(booking=placement.booking, **report), NOW)  # type: ignore[arg-type]
    return placement


def link_s(core: RouterCore, of: rpb.Placement, count: float, now: float = NOW) -> float:
    """What the router believes of the link that the placement pulled over."""
    (group,) = core.roster.groups.values()
    return sum(group.links.seconds(of.pull.source, of.worker, count, now))


def test_where_nothing_came_all_of_it_would_have_taken_longer() -> None:
    core, _ = givers(3)
    placement = pulled(core, pull_s=0.4, pull_failure="given_up")
    assert link_s(core, placement, 3984 * TOKEN_BYTES) == pytest.approx(1.6, rel=0.05)


def test_what_fails_at_once_says_nothing_of_the_link() -> None:
    core, _ = givers(3)
    placement = pulled(core, pull_s=0.4, pull_failure="gone")
    assert link_s(core, placement, 1e9) == pytest.approx(1.002)


def test_a_slow_link_is_tried_again_when_the_measurement_is_old() -> None:
    core, _ = givers(3)
    placement = pulled(core, pull_s=10.0, pulled_bytes=10_000_000)
    assert link_s(core, placement, 1e9) == pytest.approx(1000, rel=0.05)
    assert link_s(core, placement, 1e9, NOW + MEMORY_S - 1.0) == pytest.approx(1000, rel=0.05)
    assert link_s(core, placement, 1e9, NOW + MEMORY_S + 1.0) == pytest.approx(1.002)
