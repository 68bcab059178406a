"""Bar 1 of issue 3, its first half: the conversation trace on a flat engine, without and with pulls, and on
the fitted H200 with host memory; against lambda 0 ("uncached + queued") and every other rule."""

from collections.abc import Iterable

from warmfleet_router.replay import report
from warmfleet_router.replay.report import Row as Replayed

from tests.bars.played import BASELINES, CONVERSATION, LINK, Play, loaded, play_all
from tests.bars.rows import Row

SPEEDS = (3.2, 4.5, 5.0, 5.5)
WANTED = (1.02, 0.95, 0.80, 0.45)  # of lambda 0's mean TTFT, without pulls
WANTED_PULLS = (0.97, 0.82, 0.68, 0.40)
SKEW = 1.05
INFINITE_SHARE = 0.97  # of the hit rate of an infinite cache
OTHERS = 1.02
H200 = {"engine": "h200-llama-3-8b", "capacity": 1750, "host": 6250}


def main() -> list[Row]:
    flat = [of for s in SPEEDS for of in variants(Play(CONVERSATION, s))]
    fitted = [of for s in SPEEDS for of in variants(Play(CONVERSATION, s, **H200))]
    found = play_all([*flat, *fitted])
    infinite = report.bounds(loaded(CONVERSATION, None, False), 1).infinite
    rows = []
    for speed, most, most_pulls in zip(SPEEDS, WANTED, WANTED_PULLS, strict=True):
        rows += _flat(Play(CONVERSATION, speed), found, most, most_pulls, infinite)
    for speed in SPEEDS:
        rows += _fitted(Play(CONVERSATION, speed, **H200), found)
    return rows


def variants(of: Play) -> list[Play]:
    """Ours without and with pulls, lambda 0, and the other rules."""
    return [of, of._replace(link=LINK), of._replace(externality=0.0), *others(of)]


def others(of: Play) -> list[Play]:
    return [of._replace(policy=name) for name in BASELINES]


def best(plays: Iterable[Play], found: dict[Play, Replayed], column: str) -> tuple[float, str]:
    """The lowest value of a column, and whose it is."""
    return min((getattr(found[of], column), of.policy) for of in plays)


def _flat(
    of: Play, found: dict[Play, Replayed], most: float, most_pulls: float, infinite: float
) -> list[Row]:
    ours, pulls, zero = found[of], found[of._replace(link=LINK)], found[of._replace(externality=0.0)]
    what = f"conversation, flat, speed {of.speed:g}"
    ratio, ratio_pulls = ours.ttft_mean / zero.ttft_mean, pulls.ttft_mean / zero.ttft_mean
    hit = pulls.hit / infinite
    return [
        Row("3.1", f"{what}: mean TTFT over lambda 0", f"{ratio:.2f}", f"<= {most}", ratio <= most),
        Row(
            "3.1", f"{what}, pulls: mean TTFT over lambda 0 without", f"{ratio_pulls:.2f}",
            f"<= {most_pulls}", ratio_pulls <= most_pulls,
        ),
        Row(
            "3.1", f"{what}, pulls: hit over an infinite cache's", f"{hit:.3f}",
            f">= {INFINITE_SHARE}", hit >= INFINITE_SHARE,
        ),
        *_against_others(of, found, what),
        Row(
            "3.1", f"{what}: skew without and with pulls", f"{ours.skew:.3f}, {pulls.skew:.3f}",
            f"<= {SKEW}", max(ours.skew, pulls.skew) <= SKEW,
        ),
    ]  # fmt: skip


def _fitted(of: Play, found: dict[Play, Replayed]) -> list[Row]:
    what = f"conversation, H200 with host memory, speed {of.speed:g}"
    ours, pulls, zero = found[of], found[of._replace(link=LINK)], found[of._replace(externality=0.0)]
    ratios = f"{ours.ttft_mean / zero.ttft_mean:.2f}, {pulls.ttft_mean / zero.ttft_mean:.2f}"
    return [
        Row("3.1", f"{what}: over lambda 0 without and with pulls", ratios),
        *_against_others(of, found, what),
    ]


def _against_others(of: Play, found: dict[Play, Replayed], what: str) -> list[Row]:
    rows = []
    for column in ("ttft_mean", "ttft_p99"):
        least, whose = best(others(of), found, column)
        ratio = getattr(found[of], column) / least
        rows.append(
            Row(
                "3.1",
                f"{what}: {column} over the best other ({whose})",
                f"{ratio:.2f}",
                f"<= {OTHERS}",
                ratio <= OTHERS,
            )
        )
    return rows
