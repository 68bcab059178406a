"""Issue 3, prices: the adaptive externality beside the best constant one on the conversation trace: at every
load up to .95 of capacity at most 1.03x its mean TTFT, above it at least its goodput."""

from warmfleet_router.replay.capacity import parse
from warmfleet_router.replay.report import Row as Replayed

from tests.bars.played import CONVERSATION, Play, play, play_all
from tests.bars.rows import Row
from tests.bars.trace_capacity import BOUND

LAMBDAS = (8.0, 16.0, 4.0, 2.0, 1.0, 0.0)  # who is likeliest to be best first
BELOW = (0.6, 0.8, 0.9, 0.95)  # of the highest speed at which the best constant keeps the bound
ABOVE = (1.05,)
ALLOWED = 1.03
BETWEEN = (4.0, 8.0)  # speeds, the first of which is sustained and the second is not
STEPS = 5


def main() -> list[Row]:
    of = Play(CONVERSATION, 1.0)
    capacity = _capacity(of)
    rows = [Row("3.1", f"speed that the best constant lambda sustains, {BOUND}", f"{capacity:.2f}")]
    plays = [of._replace(speed=round(share * capacity, 2)) for share in (*BELOW, *ABOVE)]
    found = play_all([each for at in plays for each in (at, *_constants(at))])
    for at, share in zip(plays, (*BELOW, *ABOVE), strict=True):
        what = f"conversation, flat, speed {at.speed:g} ({share:g} of capacity)"
        constants = [(found[c], c.externality) for c in _constants(at)]
        rows.append((_mean if share < 1.0 else _goodput)(what, found[at], constants))
    return rows


def _constants(of: Play) -> list[Play]:
    return [of._replace(externality=constant) for constant in LAMBDAS]


def _capacity(of: Play) -> float:
    """The highest speed at which the best constant keeps the bound."""
    bound, (low, high) = parse(BOUND), BETWEEN
    for _ in range(STEPS):
        middle = (low + high) / 2
        if any(bound.holds(play(each)) for each in _constants(of._replace(speed=middle))):
            low = middle
        else:
            high = middle
    return low


def _mean(what: str, ours: Replayed, constants: list[tuple[Replayed, float | None]]) -> Row:
    best, constant = min((row.ttft_mean, lambda_) for row, lambda_ in constants)
    ratio = ours.ttft_mean / best
    what = f"{what}: mean TTFT over the best constant's (lambda {constant:g})"
    return Row("3.1", what, f"{ratio:.3f}", f"<= {ALLOWED}", ratio <= ALLOWED)


def _goodput(what: str, ours: Replayed, constants: list[tuple[Replayed, float | None]]) -> Row:
    best, constant = max((row.goodput, lambda_) for row, lambda_ in constants)
    what = f"{what}: goodput beside the best constant's (lambda {constant:g})"
    return Row("3.1", what, f"{ours.goodput:.4f}, {best:.4f}", "at least its", ours.goodput >= best)
