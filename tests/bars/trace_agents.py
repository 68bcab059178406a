"""Bar 1 of issue 3: the Claude Code trace at speed 4.5 with pulls, against every other rule without."""

from tests.bars.played import AGENTS, LINK, Play, play_all
from tests.bars.rows import Row
from tests.bars.trace_conversation import best, others

WANTED_MEAN, WANTED_P99 = 0.55, 0.70


def main() -> list[Row]:
    of = Play(AGENTS, 4.5)
    pulls = of._replace(link=LINK)
    found = play_all([of, pulls, of._replace(externality=0.0), *others(of)])
    rows = []
    for column, most in (("ttft_mean", WANTED_MEAN), ("ttft_p99", WANTED_P99)):
        least, whose = best(others(of), found, column)
        ratio = getattr(found[pulls], column) / least
        what = f"claude_code, speed 4.5, pulls: {column} over the best other without ({whose})"
        rows.append(Row("3.1", what, f"{ratio:.2f}", f"<= {most}", ratio <= most))
        alone = getattr(found[of], column) / least
        rows.append(Row("3.1", f"the same without pulls: {column}", f"{alone:.2f}"))
    return rows
