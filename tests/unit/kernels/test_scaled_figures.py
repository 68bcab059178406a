"""vLLM's figures, scaled to the card at hand where its ceilings differ by more than runs do."""

import pytest

from tests.bars.gpu.scaled import COPY, MATMUL, decode, prefill, scale


@pytest.mark.parametrize(("ratio", "by"), [(1.0, 1.0), (1.029, 1.0), (0.971, 1.0), (1.04, 1.04), (0.6, 0.6)])
def test_only_what_runs_do_not_explain_scales(ratio: float, by: float) -> None:
    assert scale(ratio * COPY, COPY) == pytest.approx(by)


def test_a_card_alike_has_one_row() -> None:
    (row,) = decode("d", 4.9e-3, 4.8e-3, 1.02 * COPY)
    assert str(row) == "bar 2: d: 4.90 ms  (bar: <= 4.80 ms) MISSED"
    (row,) = prefill("p", 39_000, 38_400, 0.98 * MATMUL)
    assert str(row) == "bar 1: p: 39,000 tok/s  (bar: >= 38,400) ok"


def test_a_faster_card_is_held_to_more() -> None:
    judged, plain = decode("d", 4.7e-3, 4.8e-3, 1.04 * COPY)
    assert str(judged) == "bar 2: d: 4.70 ms  (bar: <= 4.62 ms (scaled by 1.04)) MISSED"
    assert str(plain) == "bar 2: d: not scaled, <= 4.80 ms: met"
    judged, plain = prefill("p", 39_000, 38_400, 1.04 * MATMUL)
    assert str(judged) == "bar 1: p: 39,000 tok/s  (bar: >= 39,936 (scaled by 1.04)) MISSED"
    assert str(plain) == "bar 1: p: not scaled, >= 38,400: met"


def test_a_slower_card_to_less() -> None:
    judged, plain = decode("d", 7e-3, 4.8e-3, 0.6 * COPY)
    assert (judged.ok, judged.wanted, plain.figure) == (True, "<= 8.00 ms (scaled by 0.60)", "missed")
    judged, plain = prefill("p", 36_000, 38_400, 0.9 * MATMUL)
    assert (judged.ok, judged.wanted, plain.figure) == (True, ">= 34,560 (scaled by 0.90)", "missed")
    assert not plain.wanted, "shown for its own sake"
