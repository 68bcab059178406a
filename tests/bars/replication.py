"""Bar 5 of issue 5: recorded traffic with nothing moved between workers, with hot prefixes copied ahead of
requests, with pulls for requests, and with both; then tiers with and without all of it.

The agents' trace is played in part: its first requests fill all caches.
"""

from typing import NamedTuple

from warmfleet_router.replay.report import Row as Replayed

from tests.bars.played import AGENTS, CONVERSATION, LINK, Play, play_all
from tests.bars.rows import Row

WANTED = 0.95  # of the mean TTFT
INSTANT = 1e15  # bytes a second: what pulls could gain at most
H200 = {"engine": "h200-llama-3-8b", "capacity": 1750, "host": 6250}


class Case(NamedTuple):
    trace: str
    speed: float
    limit: int | None

    @property
    def name(self) -> str:
        return f"{self.trace.partition('_')[0]} x{self.speed:g}"


CASES = (Case(AGENTS, 4.5, 12_000), Case(CONVERSATION, 5.0, None))
TIERED = (Case(AGENTS, 2.0, 6_000), Case(CONVERSATION, 4.5, None))


def main() -> list[Row]:
    flat = [of for case in CASES for of in (*_ways(case), _way(case, pulls=True, link=INSTANT))]
    found = play_all([*flat, *(of for case in TIERED for of in _tiers(case))])
    rows = [row for case in CASES for row in _compared(case, found)]
    return [*rows, *(row for case in TIERED for row in _tiered(case, found))]


def _way(case: Case, *, pulls: bool = False, replicate: bool = False, link: float = LINK) -> Play:
    of = Play(case.trace, case.speed, limit=case.limit, link=link)
    return of._replace(pulls=pulls, replicate=replicate)


def _ways(case: Case) -> list[Play]:
    """Nothing moved, copies alone, pulls alone, both."""
    return [_way(case, pulls=pulls, replicate=copies) for pulls in (False, True) for copies in (False, True)]


def _compared(case: Case, found: dict[Play, Replayed]) -> list[Row]:
    none, copies, pulls, both = [found[of] for of in _ways(case)]
    least = found[_way(case, pulls=True, link=INSTANT)].ttft_mean / pulls.ttft_mean
    alone, beside = copies.ttft_mean / none.ttft_mean, both.ttft_mean / pulls.ttft_mean
    rows = [
        _shown(f"{case.name}, {what}", row)
        for what, row in (("nothing moved", none), ("copies", copies), ("pulls", pulls), ("both", both))
    ]
    return [
        *rows,
        _ratio(f"{case.name}: copies over nothing moved", alone),
        _ratio(f"{case.name}: copies and pulls over pulls (instant pulls: {least:.2f})", beside),
        Row("5.5", f"{case.name}: both over nothing moved", f"{both.ttft_mean / none.ttft_mean:.2f}"),
    ]


def _tiers(case: Case) -> list[Play]:
    """Without and with a link, over device and host memory."""
    of = Play(case.trace, case.speed, limit=case.limit, **H200)
    return [of, of._replace(link=LINK)]


def _tiered(case: Case, found: dict[Play, Replayed]) -> list[Row]:
    without, moved = [found[of] for of in _tiers(case)]
    return [
        _shown(f"{case.name}, H200 with host memory, nothing moved", without),
        _shown(f"{case.name}, H200 with host memory, copies and pulls", moved),
    ]


def _ratio(what: str, ratio: float) -> Row:
    return Row("5.5", f"{what}: mean TTFT", f"{ratio:.3f}", f"<= {WANTED}", ratio <= WANTED)


def _shown(what: str, row: Replayed) -> Row:
    figures = f"hit {row.hit:.3f} skew {row.skew:.2f} mean {row.ttft_mean:.3f} p99 {row.ttft_p99:.2f} s"
    return Row("5.5", what, figures)
