"""Bar 6: the locust users for 30 s against sim workers, headless."""

import asyncio
import tempfile
from pathlib import Path

from tests.bars.fleet import sim_fleet
from tests.bars.rows import Row
from tests.unit.loadtest.headless import locust

LOAD = "--users 8 --spawn-rate 4 --run-time 30s --longest-prefix 4000 --max-tokens 16"


def main() -> list[Row]:
    with sim_fleet(4) as fleet, tempfile.TemporaryDirectory() as folder:
        run = asyncio.run(locust(fleet.url, Path(folder) / "run.json", LOAD))
    rows = []
    for name in ("chat", "agent"):
        answers = run.rows["POST", name]
        figure = (
            f"{answers['num_requests']} answers, {answers['num_failures']} failed, "
            f"TTFT p50 {run.median_ms('TTFT', name)} ms, ITL p50 {run.median_ms('ITL', name)} ms"
        )
        rows.append(
            Row("6", f"locust, {name} users, 30 s", figure, "none failed", not answers["num_failures"])
        )
    (rate,) = [line for line in run.output.splitlines() if line.startswith("hit rate")]
    return [*rows, Row("6", "locust, at the end", rate)]
