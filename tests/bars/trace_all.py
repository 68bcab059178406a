"""Bar 1 of issue 3: four traces, small and large caches, three loads; nothing worse than the best other rule
by more than 5 %, and pulls never worse than none by more than 2 %."""

from collections.abc import Sequence

from warmfleet_router.replay.report import Row as Replayed

from tests.bars.played import AGENTS, CONVERSATION, LINK, SESSIONS, TOOLS, Play, play, play_all
from tests.bars.rows import Row
from tests.bars.trace_conversation import best, others

TRACES = (CONVERSATION, TOOLS, SESSIONS, AGENTS)
CAPACITIES = (2000, 8000)  # blocks of 512 tokens a worker
UTILISED = (0.5, 0.8, 0.95)  # by lambda 0
PROBES = 2
OTHERS, PULLS = 1.05, 1.02


def main(
    traces: Sequence[str] = TRACES, utilised: Sequence[float] = UTILISED, limit: int | None = None
) -> list[Row]:
    rows = []
    for trace in traces:
        for capacity in CAPACITIES:
            scale = 8 if "blk64" in trace else 1
            start = Play(trace, 1.0, capacity=capacity * scale, externality=0.0, limit=limit)
            for share in utilised:
                start = at_utilisation(start, share)
                rows += judged(start._replace(externality=None), share)
    return rows


def at_utilisation(of: Play, share: float) -> Play:
    """The speed at which lambda 0 is so much utilised, about."""
    for _ in range(PROBES):
        of = of._replace(speed=round(of.speed * share / play(of).utilisation, 3))
    return of


def judged(of: Play, share: float) -> list[Row]:
    pulls, zero = of._replace(link=LINK), of._replace(externality=0.0)
    found = play_all([of, pulls, zero, *others(of)])
    name = of.trace.partition("_blk")[0]
    what = f"{name}, C = {of.capacity}, speed {of.speed:g} (lambda 0 {found[zero].utilisation:.2f} utilised)"
    rows = []
    for column in ("ttft_mean", "ttft_p99"):
        least, whose = best(others(of), found, column)
        ratio = getattr(found[of], column) / least
        rows.append(
            Row("3.1", f"{what}: {column} over {whose}'s", f"{ratio:.2f}", f"<= {OTHERS}", ratio <= OTHERS)
        )
    rows.append(_pulls(found[of], found[pulls], what))
    return rows


def _pulls(without: Replayed, allowed: Replayed, what: str) -> Row:
    ratio = allowed.ttft_mean / without.ttft_mean
    return Row(
        "3.1", f"{what}: mean TTFT with pulls over without", f"{ratio:.2f}", f"<= {PULLS}", ratio <= PULLS
    )
