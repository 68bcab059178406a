"""locust patches the whole process with gevent, so it runs in one of its own."""

import asyncio
import csv
import sys
from pathlib import Path

import pytest
from aiohttp.test_utils import TestServer

from tests.unit.loadtest.stand_in import StandIn

LOCUSTFILE = Path(__file__).parents[3] / "loadtest" / "locustfile.py"


async def locust(url: str, statistics: Path, *more: str) -> str:
    """What a headless run of 3 s printed; two users of each kind."""
    flags = f"--headless --only-summary --host {url} --csv {statistics}"
    load = "--users 4 --spawn-rate 10 --run-time 3s --stop-timeout 5s"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), *flags.split(), *load.split(), *more),
        cwd=LOCUSTFILE.parents[1],
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    return output.decode()


@pytest.mark.timeout(40)
async def test_users_stream_and_report_ttft_itl_and_the_hit_rate(tmp_path: Path) -> None:
    stand_in = StandIn(gap_s=0.02)
    async with TestServer(stand_in.app()) as server:
        url = str(server.make_url("")).rstrip("/")
        output = await locust(url, tmp_path / "run", "--longest-prefix", "600")
    statistics = (tmp_path / "run_stats.csv").read_text().splitlines()
    rows = {(r["Type"], r["Name"]): r for r in csv.DictReader(statistics)}
    for name in ("chat", "agent"):
        answers, first, gaps = rows["POST", name], rows["TTFT", name], rows["ITL", name]
        assert int(answers["Failure Count"]) == 0
        assert int(first["Request Count"]) == int(answers["Request Count"]) > 0
        assert int(gaps["Request Count"]) == 2 * int(answers["Request Count"])
        assert 38 <= float(first["Median Response Time"]) <= float(answers["Median Response Time"])
        assert 15 <= float(gaps["Median Response Time"]) <= 60
    assert "hit rate 0." in output
    assert "w0: 0.750: 3 of 4 prompt tokens" in output
    histories = [b["messages"] for b in stand_in.bodies if len(b["messages"]) > 2]
    assert histories
    assert all(m[2] == {"role": "assistant", "content": "warm is good"} for m in histories)
