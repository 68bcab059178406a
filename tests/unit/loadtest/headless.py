"""Runs locust headless. It patches its whole process with gevent, so it has one of its own."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[3]
LOCUSTFILE = ROOT / "loadtest" / "locustfile.py"


class Run(NamedTuple):
    output: str
    rows: dict[tuple[str, str], dict[str, Any]]  # locust's own statistics by (request type, name)

    def mean_ms(self, kind: str, name: str) -> float:
        """Of events that came together because nobody read meanwhile, too: each gap counts once."""
        row = self.rows[kind, name]
        return float(row["total_response_time"] / row["num_requests"])

    def median_ms(self, kind: str, name: str) -> int:
        times = sorted((int(ms), count) for ms, count in self.rows[kind, name]["response_times"].items())
        half = self.rows[kind, name]["num_requests"] / 2
        seen = 0
        for ms, count in times:
            seen += count
            if seen >= half:
                return ms
        raise AssertionError(f"nothing of {kind} {name}")


async def locust(url: str, report: Path, load: str) -> Run:
    """``report`` (PATH.json) is where its statistics go. A failed request fails the run."""
    flags = f"-m locust -f {LOCUSTFILE} --headless --only-summary --stop-timeout 10s"
    process = await asyncio.create_subprocess_exec(
        *(
            sys.executable,
            *flags.split(),
            "--host",
            url,
            "--json-file",
            str(report.with_suffix("")),
            *load.split(),
        ),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    raw, _ = await process.communicate()
    output = raw.decode(errors="replace")
    assert process.returncode == 0, output
    return Run(output, rows(report))


def rows(report: Path) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["method"], row["name"]): row for row in json.loads(report.read_bytes())}
