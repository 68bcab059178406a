"""What each term of the price changes: TTFT and hit rate without it, over those of the whole price."""

from tests.bars.played import AGENTS, CONVERSATION, LINK, Play, play_all
from tests.bars.rows import Row

TERMS = ("wait", "bring", "prefill", "externality", "copies", "lateness", "eviction", "decode")
PLACES = (
    Play(CONVERSATION, 5.0, link=LINK),
    Play(CONVERSATION, 5.0, engine="h200-llama-3-8b", capacity=1750, host=6250, link=LINK, decode=True),
    Play(AGENTS, 1.2, capacity=2000, link=LINK, limit=8000),
)
LAMBDAS = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0)


def main() -> list[Row]:
    plays = [of for place in PLACES for of in (place, *_ablated(place))]
    found = play_all(plays)
    rows = []
    for place in PLACES:
        whole = found[place]
        for of in _ablated(place):
            row = found[of]
            ratios = f"{row.ttft_mean / whole.ttft_mean:.2f}, {row.ttft_p99 / whole.ttft_p99:.2f}"
            figure = f"{ratios}, hit {row.hit - whole.hit:+.3f}, skew {row.skew:.2f}"
            rows.append(Row("3.1", f"{place.place}: {of.label} (mean, p99 over the whole price's)", figure))
    return rows


def _ablated(place: Play) -> list[Play]:
    without = [place._replace(without=term) for term in TERMS]
    return [*without, place._replace(link=0.0), *(place._replace(externality=x) for x in LAMBDAS)]
