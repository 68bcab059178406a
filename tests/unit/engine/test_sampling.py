"""Filters against a plain reference, draws against the distribution they are drawn from."""

import math

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from warmfleet_worker.engine import sampling
from warmfleet_worker.engine.base import Logprobs, Sampling
from warmfleet_worker.engine.sampling import Draw, chances, score


def probabilities(logits: torch.Tensor, how: list[Sampling]) -> torch.Tensor:
    chosen = chances([Draw(each, 0, 0) for each in how])
    assert chosen is not None
    return sampling.probabilities(logits, chosen)


def draw(logits: torch.Tensor, draws: list[tuple[Sampling, int, int]]) -> list[int]:
    return sampling.draw(logits, chances([Draw(*each) for each in draws])).tolist()


def logprobs(logits: torch.Tensor, token_ids: list[int], counts: list[int]) -> list[Logprobs]:
    return sampling.logprobs(score(logits, torch.tensor(token_ids), max(counts)), counts)


def plain(logits: list[float], s: Sampling) -> list[float]:
    """What is drawn from, in loops over Python floats."""
    top = max(logits)
    weights = [math.exp((x - top) / s.temperature) for x in logits]
    weights = [w if w >= s.min_p else 0.0 for w in weights]
    best = sorted(range(len(logits)), key=lambda i: (-weights[i], i))
    if s.top_k:
        best = best[: s.top_k]
    total, kept, before = sum(weights[i] for i in best), [], 0.0
    for i in best:
        if kept and before >= s.top_p:
            break
        kept.append(i)
        before += weights[i] / total
    total = sum(weights[i] for i in kept)
    return [weights[i] / total if i in kept else 0.0 for i in range(len(logits))]


samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.1, 0.7, 1.0, 3.0]),
    top_p=st.sampled_from([0.0, 0.1, 0.5, 0.77, 0.9, 1.0]),
    top_k=st.sampled_from([0, 1, 2, 5, 1000]),
    min_p=st.sampled_from([0.0, 0.01, 0.3, 1.0]),
)
logit_rows = st.lists(st.integers(-40, 40).map(lambda i: i / 8), min_size=12, max_size=12)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(logit_rows, samplings), min_size=1, max_size=4))
def test_filters_agree_with_the_plain_reference(rows: list[tuple[list[float], Sampling]]) -> None:
    logits, how = [row for row, _ in rows], [s for _, s in rows]
    found = probabilities(torch.tensor(logits), how)
    wanted = torch.tensor([plain(row, s) for row, s in rows])
    # A sum that meets top_p to the last bit may fall on either side of it.
    differing = ((found - wanted).abs() > 1e-5).any(-1)
    for row in differing.nonzero()[:, 0].tolist():
        nudged = [
            Sampling(how[row].temperature, how[row].top_p + d, how[row].top_k, how[row].min_p)
            for d in (-1e-5, 1e-5)
        ]
        assert any(torch.allclose(found[row], torch.tensor(plain(logits[row], s)), atol=1e-5) for s in nudged)


def test_draws_follow_the_distribution() -> None:
    """Chi-square over 40 ids, three quarters of which are filtered out or rare."""
    logits = torch.linspace(0, 4, 40)[torch.randperm(40, generator=torch.Generator().manual_seed(1))]
    how = Sampling(temperature=0.8, top_p=0.9, top_k=30, seed=1234)
    shares = probabilities(logits[None], [how])[0].double()
    count = 20_000
    tokens = draw(logits.expand(count, -1), [(how, position, 0) for position in range(count)])
    seen = torch.bincount(torch.tensor(tokens), minlength=40).double()
    assert (seen[shares == 0] == 0).all()
    kept = shares > 0
    chi_square = (((seen - count * shares) ** 2)[kept] / (count * shares[kept])).sum().item()
    freedom = int(kept.sum()) - 1
    assert 15 < freedom < 30
    assert abs(chi_square - freedom) < 4 * math.sqrt(2 * freedom)


def test_positions_choices_and_seeds_are_independent() -> None:
    logits = torch.zeros(1, 2)
    bits = [
        np.array(draw(logits.expand(4096, -1), list(draws)))
        for draws in (
            [(Sampling(1.0, seed=5), i, 0) for i in range(4096)],
            [(Sampling(1.0, seed=5), i, 1) for i in range(4096)],
            [(Sampling(1.0, seed=6), i, 0) for i in range(4096)],
            [(Sampling(1.0, seed=5 + (1 << 40)), i, 0) for i in range(4096)],
        )
    ]
    correlations = np.corrcoef([*bits, np.roll(bits[0], 1)])
    assert np.abs(correlations[~np.eye(5, dtype=bool)]).max() < 4 / math.sqrt(4096)


def test_a_draw_depends_on_nothing_else_in_the_batch() -> None:
    logits = torch.randn(6, 50, generator=torch.Generator().manual_seed(2))
    how = [
        (Sampling(1.0, seed=1), 0, 0),
        (Sampling(0.0), 1, 0),
        (Sampling(1.0, top_k=3, seed=1), 0, 0),
        (Sampling(1.5, top_p=0.5, seed=9), 4, 2),
        (Sampling(1e-9, top_p=0.5, seed=9), 4, 2),
        (Sampling(1.0, min_p=0.2, seed=9), 4, 2),
    ]
    together = draw(logits, how)
    assert together == [draw(logits[i : i + 1], [how[i]])[0] for i in range(6)]
    assert together[1] == logits[1].argmax()
    assert together[4] == logits[4].argmax()


def test_extreme_logits_stay_in_the_vocabulary() -> None:
    rows = torch.tensor([[-torch.inf, 0.0, -torch.inf], [torch.nan] * 3, [3e38, -3e38, 0.0]])
    how = [(Sampling(1e-4, top_p=1e-9, min_p=1.0, seed=seed), 0, 0) for seed in range(3)]
    first, second, third = draw(rows, how)
    assert (first, third) == (1, 0)
    assert 0 <= second < 3


def test_logprobs_are_of_the_model_not_of_the_filter() -> None:
    logits = torch.randn(3, 20, generator=torch.Generator().manual_seed(3))
    wanted = logits.double().log_softmax(-1)
    found = logprobs(logits, [4, 5, 6], [0, 2, 100])
    assert [len(f.top_ids) for f in found] == [0, 2, 20]
    for row, (f, token) in enumerate(zip(found, [4, 5, 6], strict=True)):
        assert abs(f.logprob - wanted[row, token]) < 1e-5
        assert np.allclose(f.top_logprobs, wanted[row, list(f.top_ids)], atol=1e-5)
        assert list(f.top_logprobs) == sorted(f.top_logprobs, reverse=True)
    assert found[2].top_ids[0] == logits[2].argmax()


def test_of_equals_the_lower_ids_stay() -> None:
    kept = probabilities(torch.zeros(1, 5000), [Sampling(1.0, top_k=3)])[0].nonzero()[:, 0]
    assert kept.tolist() == [0, 1, 2]
