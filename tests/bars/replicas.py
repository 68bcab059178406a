"""Bar 5 of issue 6: one, two and four routers that share nothing but the workers, on the conversation trace.

In virtual time. The trace tells times to 3 s: requests of one such instant are spread over it, as they came.
Gateways ask the routers by the prompt's root or, as those that know no better, in turn; reports take 10 ms to
arrive. In flight at a worker are its requests over the whole run: their times from arrival to end, summed.
"""

from warmfleet_router.replay.report import Row as Replayed

from tests.bars.played import CONVERSATION, Play, play_all
from tests.bars.rows import Row

SPEEDS = (3.2, 5.0, 5.5)
ROUTERS = ((2, False), (4, False), (2, True), (4, True))  # and whether they are asked in turn
DELAY_S = 0.01
HIT_SHARE = 0.98  # of one router's
IMBALANCE = 0.25


def main() -> list[Row]:
    alone = [Play(CONVERSATION, speed, delay=DELAY_S, spaced=True) for speed in SPEEDS]
    several = {of: [of._replace(routers=n, in_turn=turn) for n, turn in ROUTERS] for of in alone}
    found = play_all([of for one in alone for of in (one, *several[one])])
    return [row for one in alone for of in several[one] for row in _beside(of, found[of], found[one])]


def _beside(of: Play, row: Replayed, one: Replayed) -> list[Row]:
    what = f"conversation, speed {of.speed:g}, {of.routers} routers{' in turn' if of.in_turn else ''}"
    share, ttft = row.hit / one.hit, row.ttft_mean / one.ttft_mean
    return [
        Row(
            "6.5",
            f"{what}: hit over one router's; TTFT mean, p99",
            f"{share:.3f}; {ttft:.2f}x ({row.ttft_mean:.3f} s), {row.ttft_p99 / one.ttft_p99:.2f}x",
            f">= {HIT_SHARE}",
            share >= HIT_SHARE,
        ),
        Row(
            "6.5",
            f"{what}: in flight above the mean (one router {one.imbalance:.2f}); skew",
            f"{row.imbalance:.2f}; {row.skew:.2f}",
            f"<= {IMBALANCE}",
            row.imbalance <= IMBALANCE,
        ),
    ]
