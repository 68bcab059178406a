"""From logits to tokens: filters, the draw, and log-probabilities.

A draw is inverse-CDF: the first token id whose cumulative probability, summed in float64 over token ids
in order, exceeds the Philox number of (seed, position, choice). Nothing depends on the batch, on other
draws or on the device, beyond the rounding of the logits themselves.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from warmfleet_worker.engine.base import Logprobs, Sampling
from warmfleet_worker.engine.philox import uniforms

GREEDY_BELOW = 1e-5  # temperatures under this are greedy: dividing by them would overflow


def draw(logits: Tensor, draws: Sequence[tuple[Sampling, int, int]]) -> list[int]:
    """One token id for each row of ``logits[n, vocab]`` and its (sampling, position, choice)."""
    chosen = logits.argmax(-1)
    rows = [row for row, (sampling, _, _) in enumerate(draws) if sampling.temperature >= GREEDY_BELOW]
    if rows:
        samplings = [draws[row][0] for row in rows]
        numbers = uniforms([(draws[row][0].seed, *draws[row][1:]) for row in rows])
        chosen[rows] = _invert(probabilities(logits[rows], samplings), numbers)
    return [int(token) for token in chosen.tolist()]


def probabilities(logits: Tensor, samplings: Sequence[Sampling]) -> Tensor:
    """What is drawn from, float32 [n, vocab]: temperature, then min_p, top_k and top_p, as in vLLM.

    min_p keeps tokens of at least that share of the best one's probability. top_k keeps the best; of equal
    ones the lower ids. top_p keeps the least number of the best that are left whose probabilities,
    renormalised, sum to at least top_p.
    """
    column = _Column(logits)
    scaled = (logits - logits.amax(-1, keepdim=True)) / column([s.temperature for s in samplings])
    scaled = scaled.masked_fill(scaled < column([s.min_p for s in samplings]).log(), -torch.inf)
    sorting = [row for row, s in enumerate(samplings) if s.top_k > 0 or s.top_p < 1]
    if sorting:
        scaled[sorting] = _top(scaled[sorting], [samplings[row] for row in sorting])
    return scaled.softmax(-1)


def logprobs(logits: Tensor, token_ids: Sequence[int], alternatives: Sequence[int]) -> list[Logprobs]:
    """Of ``token_ids`` under each row of ``logits[n, vocab]``, before any filter or temperature."""
    scores = logits.log_softmax(-1)
    chosen = torch.tensor(token_ids, device=logits.device)
    own = scores.gather(-1, chosen[:, None])[:, 0].tolist()
    best = scores.topk(min(max(alternatives), logits.shape[-1]), dim=-1)
    rows = zip(own, best.indices.tolist(), best.values.tolist(), alternatives, strict=True)
    return [Logprobs(score, tuple(ids[:count]), tuple(values[:count])) for score, ids, values, count in rows]


class _Column:
    """Puts one number a row beside ``like[n, vocab]``."""

    def __init__(self, like: Tensor) -> None:
        self._like = like

    def __call__(self, values: Sequence[float]) -> Tensor:
        return self._like.new_tensor(values)[:, None]


def _top(scaled: Tensor, samplings: Sequence[Sampling]) -> Tensor:
    """``scaled`` with -inf for all that top_k and top_p leave out."""
    column, vocab = _Column(scaled), scaled.shape[-1]
    ordered, ids = scaled.sort(dim=-1, descending=True, stable=True)
    ranks = torch.arange(vocab, device=scaled.device)
    ordered = ordered.masked_fill(ranks >= column([s.top_k or vocab for s in samplings]), -torch.inf)
    shares = ordered.softmax(-1)
    before = shares.cumsum(-1) - shares
    reached = before >= column([s.top_p if s.top_p < 1 else torch.inf for s in samplings])
    reached[:, 0] = False  # the best token stays, whatever top_p
    return torch.empty_like(scaled).scatter_(-1, ids, ordered.masked_fill(reached, -torch.inf))


def _invert(shares: Tensor, numbers: np.ndarray[tuple[int], np.dtype[np.float64]]) -> Tensor:
    """The first id of each row whose cumulative share exceeds the number times their sum."""
    cumulative = shares.double().cumsum(-1)
    targets = torch.from_numpy(numbers).to(shares.device)[:, None] * cumulative[:, -1:]
    found = torch.searchsorted(cumulative, targets, right=True)[:, 0]
    return found.clamp(max=shares.shape[-1] - 1)  # only rows of NaN reach past the end
