"""Bar 1: ``warmfleet up`` on an installed checkout, and the two turns that it prints.

From a fresh clone, the same comes after ``make up`` has installed what it needs.
"""

import re
import sys
import time
from typing import NamedTuple

from tests.bars.programs import Program, programs
from tests.bars.rows import Row

FIGURES = re.compile(r"prompt (\d+) tokens, cached (\d+), TTFT (\d+) ms")
START_S = 25.0  # a second start, on 2 cores


class Turn(NamedTuple):
    prompt: int
    cached: int
    ttft_ms: int


def main() -> list[Row]:
    with programs() as starter:
        began = time.perf_counter()
        up = starter.start("up", [sys.executable, "-m", "warmfleet_router.cli", "up", "--port", "0"])
        answered(up, 1)
        took = time.perf_counter() - began
        first, second = answered(up, 2)
        print(up.log.read_text())
        up.stop()
    cached = f"{second.cached} of the first turn's {first.prompt} prompt tokens"
    ttfts = f"{first.ttft_ms} ms, then {second.ttft_ms} ms"
    return [
        Row(
            "1", "warmfleet up: to the first answer", f"{took:.1f} s", f"<= {START_S:.0f} s", took <= START_S
        ),
        Row("1", "second turn: cached tokens", cached, ">= 90 %", second.cached >= 0.9 * first.prompt),
        Row("1", "TTFT", ttfts),
        Row("1", "SIGTERM: exit status", str(up.process.returncode), "0", up.process.returncode == 0),
    ]


def answered(up: Program, turns: int) -> list[Turn]:
    """The figures of so many turns, as soon as they are printed."""
    for _ in up.polls(120):
        printed = FIGURES.findall(up.log.read_text(errors="replace"))
        if len(printed) >= turns:
            return [Turn(*map(int, figures)) for figures in printed]
    raise RuntimeError(f"no conversation: {up.tail()}")
