"""Bar 1 of issue 3: how fast the conversation trace may play with each policy while TTFT p99 stays < 10 s."""

from concurrent.futures import ProcessPoolExecutor

from warmfleet_router.replay.capacity import parse, search

from tests.bars.played import BASELINES, CONVERSATION, LINK, Play, play
from tests.bars.rows import Row

BOUND = "ttft_p99<10"


def capacity_of(of: Play) -> float:
    return search(parse(BOUND), lambda speed: play(of._replace(speed=speed)))


def main() -> list[Row]:
    ours = Play(CONVERSATION, 1.0)
    plays = [ours, ours._replace(link=LINK), ours._replace(externality=0.0)]
    plays += [ours._replace(policy=name) for name in BASELINES]
    found = {}
    with ProcessPoolExecutor(2) as pool:
        for of, speed in zip(plays, pool.map(capacity_of, plays), strict=True):
            found[of] = speed
            print(f"  {of.label:34} up to speed {speed:.2f}", flush=True)
    best, whose = max((found[of], of.policy) for of in plays[3:])
    rows = [Row("3.1", f"speed with {BOUND}, {of.label}", f"{speed:.2f}") for of, speed in found.items()]
    ratio, with_pulls = found[plays[0]] / best, found[plays[1]] / best
    rows.append(
        Row(
            "3.1",
            f"ours over the best other's ({whose}), without and with pulls",
            f"{ratio:.2f}, {with_pulls:.2f}",
        )
    )
    return rows
