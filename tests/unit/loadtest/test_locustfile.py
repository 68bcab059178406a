from pathlib import Path

from aiohttp.test_utils import TestServer

from tests.unit.loadtest.headless import locust
from tests.unit.loadtest.stand_in import CONTEXT, StandIn

LOAD = "--users 4 --spawn-rate 10 --run-time 10s"


async def test_users_stream_and_report_ttft_itl_and_the_hit_rate(tmp_path: Path) -> None:
    stand_in = StandIn(gap_s=0.05)
    async with TestServer(stand_in.app()) as server:
        run = await locust(str(server.make_url("")).rstrip("/"), tmp_path / "run.json", LOAD)
    for name in ("chat", "agent"):
        answers = run.rows["POST", name]
        assert answers["num_failures"] == 0
        assert run.rows["TTFT", name]["num_requests"] == answers["num_requests"] > 0
        assert run.rows["ITL", name]["num_requests"] == 2 * answers["num_requests"]
        assert 95 <= run.median_ms("TTFT", name) < run.median_ms("POST", name)
        assert run.mean_ms("ITL", name) >= 35
    assert "hit rate 0." in run.output
    assert "w0: 0.750: 3 of 4 prompt tokens" in run.output
    histories = [b["messages"] for b in stand_in.bodies if len(b["messages"]) > 2]
    assert histories
    assert all(m[2] == {"role": "assistant", "content": "warm is good"} for m in histories)
    prefixes = [len(b["messages"][0]["content"].split()) for b in stand_in.bodies]
    assert max(prefixes) <= CONTEXT // 2  # longer ones would leave no room for a question
