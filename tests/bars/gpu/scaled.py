"""vLLM's figures for the card at hand: scaled where a ceiling differs from that of the card they come from.

Decoding reads all weights and KV, so its seconds go with the copy rate; prefill multiplies, so its rate goes
with the product of 8192^3, run alone as it was there. Pure.
"""

from collections.abc import Iterator

from tests.bars.rows import Row

COPY, MATMUL = 4204e9, 775e12  # bytes/s and FLOP/s of the card on which vLLM's figures were measured
APART = 0.03  # of a ceiling: less is the difference between two runs


def scale(ceiling: float, theirs: float) -> float:
    """What a figure is scaled by; 1 where the cards are alike."""
    ratio = ceiling / theirs
    return ratio if abs(ratio - 1) > APART else 1.0


def decode(what: str, took_s: float, wanted_s: float, copy: float) -> Iterator[Row]:
    """The bar, and beside a scaled one what the figure as it was measured would say."""
    by = scale(copy, COPY)
    limit = wanted_s / by
    yield Row("2", what, _ms(took_s), f"<= {_ms(limit)}{_says(by)}", took_s <= limit)
    if by != 1:
        yield _plain("2", what, f"<= {_ms(wanted_s)}", took_s <= wanted_s)


def prefill(what: str, rate: float, wanted: float, matmul: float) -> Iterator[Row]:
    """The same in tokens a second; ``matmul`` of one product alone."""
    by = scale(matmul, MATMUL)
    limit = wanted * by
    yield Row("1", what, f"{rate:,.0f} tok/s", f">= {limit:,.0f}{_says(by)}", rate >= limit)
    if by != 1:
        yield _plain("1", what, f">= {wanted:,.0f}", rate >= wanted)


def _says(by: float) -> str:
    return "" if by == 1 else f" (scaled by {by:.2f})"


def _plain(bar: str, what: str, wanted: str, met: bool) -> Row:
    return Row(bar, f"{what}: not scaled, {wanted}", "met" if met else "missed")


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms"
