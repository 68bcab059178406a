"""The load tests against real processes: sim workers, the router and its gateway."""

from pathlib import Path

import pytest

from tests.bars import sharing
from tests.bars.fleet import sim_fleet
from tests.unit.loadtest.headless import locust

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
        assert 15 <= run.median_ms("ITL", name) <= 300
    fleet_line = next(line for line in run.output.splitlines() if line.startswith("hit rate"))
    assert float(fleet_line.removeprefix("hit rate").partition(":")[0]) > 0
    for worker in counted:
        total = worker["hit_rate"]["total"]
        assert f"{worker['worker']}: " in run.output
        assert f"{total['hit_tokens']} of {total['asked_tokens']} prompt tokens" in run.output


@pytest.mark.timeout(180)
def test_cheapest_beats_round_robin_on_conversations_that_share_a_prompt() -> None:
    plain, ours = sharing.compare(duration=9.0, warm=3.0, grace=4.0)
    missed = [row for row in sharing.rows(plain, ours) if not row.ok]
    assert not missed, "\n".join(map(str, missed))
