"""The load tests against real processes: sim workers, the router and its gateway."""

from pathlib import Path

import pytest
from warmfleet_router.replay import report
from warmfleet_router.routing import PolicyName, Routing

from loadtest.workloads import chat
from tests.bars import load, sharing, virtual
from tests.bars.fleet import sim_fleet
from tests.unit.loadtest.headless import locust

POLICIES: tuple[PolicyName, ...] = ("round_robin", "cheapest")
USERS = "--users 6 --spawn-rate 3 --run-time 30s --longest-prefix 3000 --max-tokens 16"


@pytest.mark.timeout(180)
async def test_locust_users_for_thirty_seconds(tmp_path: Path) -> None:
    with sim_fleet(2) as fleet:
        run = await locust(fleet.url, tmp_path / "run.json", USERS)
        counted = fleet.admin()["workers"]
    for name in ("chat", "agent"):
        answers = run.rows["POST", name]
        assert answers["num_failures"] == 0
        assert run.rows["TTFT", name]["num_requests"] == answers["num_requests"] >= 10
        # sixteen tokens; a chunk may carry two where the first ends within a character
        assert run.rows["ITL", name]["num_requests"] >= 8 * answers["num_requests"]
        assert run.mean_ms("ITL", name) >= 15
    fleet_line = next(line for line in run.output.splitlines() if line.startswith("hit rate"))
    assert float(fleet_line.removeprefix("hit rate").partition(":")[0]) > 0
    for worker in counted:
        total = worker["hit_rate"]["total"]
        assert f"{worker['worker']}: " in run.output
        assert f"{total['hit_tokens']} of {total['asked_tokens']} prompt tokens" in run.output


@pytest.mark.timeout(180)
def test_cheapest_beats_round_robin_on_conversations_that_share_a_prompt() -> None:
    plain, ours = sharing.compare(duration=9.0, warm=3.0, grace=60.0)
    assert (plain.finished, ours.finished) == (plain.requests, ours.requests)
    hits, *_ = sharing.rows(plain, ours)
    assert hits.ok, hits


def test_its_first_tokens_come_sooner() -> None:
    """The same turns in virtual time: on the machine's clock, what else it does would count as well."""
    plain, ours = [chats(policy) for policy in POLICIES]
    assert ours.ttft_mean < plain.ttft_mean
    assert ours.ttft_p99 < plain.ttft_p99
    assert ours.hit > 1.3 * plain.hit


def test_a_link_spares_chats_the_choice_between_hits_and_time() -> None:
    """Without one, turns that leave a busy holder compute their history again."""
    sticky, ours, linked = chats("sglang_threshold"), chats("cheapest"), chats("cheapest", link=12.5e9)
    assert linked.hit > max(sticky.hit, ours.hit)
    assert linked.ttft_mean < 0.9 * min(sticky.ttft_mean, ours.ttft_mean)


def chats(policy: PolicyName, link: float = 0.0) -> report.Row:
    workload: load.Workload = lambda rate: chat(rate, 30.0, sharing.SEED, sharing.SHAPE)  # noqa: E731
    turns = load.at(sharing.UTILISATION, sharing.WORKERS, 30.0, workload)
    fleet = virtual.play(Routing(policy=policy), virtual.trace(turns), sharing.WORKERS, link=link)
    return report.summarise(policy, fleet, 30.0)
