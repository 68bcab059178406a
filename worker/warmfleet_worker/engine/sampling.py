"""From logits to tokens: filters, the draw, and log-probabilities. Nothing here waits for a device.

A draw is inverse-CDF: the first token id whose cumulative probability, summed in float64 over token ids
in order, exceeds the Philox number of (seed, position, choice). Nothing depends on the batch, on other
draws or on the device, beyond the rounding of the logits themselves.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from warmfleet_worker.engine.base import Logprobs, Sampling
from warmfleet_worker.engine.philox import first_words

GREEDY_BELOW = 1e-5  # temperatures under this are greedy: dividing by them would overflow
_ALL = 2**31 - 1  # top_k when it is off


class Draw(NamedTuple):
    """One token to choose from a row of logits, and with which number."""

    sampling: Sampling
    position: int
    choice: int


class Chances(NamedTuple):
    """How the rows that are not greedy are drawn from; entry i is about row ``rows[i]``."""

    rows: Tensor  # int32 [n]
    temperatures: Tensor  # float32 [n]
    min_ps: Tensor  # float32 [n]
    top_ks: Tensor  # int32 [n]
    top_ps: Tensor  # float32 [n], infinite where it is off
    words: Tensor  # int32 [n], of Philox: the bits of an unsigned number
    cut: Tensor  # int32 [m]: entries that top_k or top_p cuts


class Scores(NamedTuple):
    """Log-probabilities of n tokens, and of the best ones beside each, best first."""

    own: Tensor  # float32 [n]
    ids: Tensor  # int64 [n, most]
    best: Tensor  # float32 [n, most]


def chances(draws: Sequence[Draw]) -> Chances | None:
    """What one draw a row needs, on the host; None if all are greedy."""
    rows = [row for row, draw in enumerate(draws) if draw.sampling.temperature >= GREEDY_BELOW]
    if not rows:
        return None
    samplings = [draws[row].sampling for row in rows]
    words = first_words([(draws[row].sampling.seed, *draws[row][1:]) for row in rows])
    return Chances(
        _int32(rows),
        torch.tensor([s.temperature for s in samplings]),
        torch.tensor([s.min_p for s in samplings]),
        _int32([s.top_k or _ALL for s in samplings]),
        torch.tensor([s.top_p if s.top_p < 1 else torch.inf for s in samplings]),
        torch.from_numpy(words.view("int32")),
        _int32([i for i, s in enumerate(samplings) if s.top_k > 0 or s.top_p < 1]),
    )


def draw(logits: Tensor, how: Chances | None) -> Tensor:
    """One token id for each row of ``logits[n, vocab]``, int64 [n]. ``how`` is where the logits are."""
    greedy = logits.argmax(-1)
    if how is None:
        return greedy
    rows = how.rows.long()
    return greedy.index_copy(0, rows, _invert(probabilities(logits.index_select(0, rows), how), how.words))


def probabilities(logits: Tensor, how: Chances) -> Tensor:
    """What is drawn from, float32 [n, vocab]: temperature, then min_p, top_k and top_p, as in vLLM.

    ``logits[i]`` are those of entry i. min_p keeps tokens of at least that share of the best one's
    probability. top_k keeps the best; of equal ones the lower ids. top_p keeps the least number of the best
    that are left whose probabilities, renormalised, sum to at least top_p.
    """
    scaled = (logits - logits.amax(-1, keepdim=True)) / how.temperatures[:, None]
    scaled = scaled.masked_fill(scaled < how.min_ps[:, None].log(), -torch.inf)
    if len(how.cut):
        cut = how.cut.long()
        some = _top(scaled.index_select(0, cut), how.top_ks[cut, None], how.top_ps[cut, None])
        scaled = scaled.index_copy(0, cut, some)
    return scaled.softmax(-1)


def score(logits: Tensor, token_ids: Tensor, most: int) -> Scores:
    """Log-probabilities of ``token_ids[n]`` under each row of ``logits[n, vocab]``, and the ``most`` likely
    ones; before any filter or temperature."""
    scores = logits.log_softmax(-1)
    best = scores.topk(min(most, logits.shape[-1]), dim=-1)
    return Scores(scores.gather(-1, token_ids.long()[:, None])[:, 0], best.indices, best.values)


def logprobs(scores: Scores, counts: Sequence[int]) -> list[Logprobs]:
    """Scores on the host, with so many alternatives each."""
    rows = zip(scores.own.tolist(), scores.ids.tolist(), scores.best.tolist(), counts, strict=True)
    return [Logprobs(own, tuple(ids[:count]), tuple(best[:count])) for own, ids, best, count in rows]


def _top(scaled: Tensor, top_ks: Tensor, top_ps: Tensor) -> Tensor:
    """``scaled`` with -inf for all that top_k and top_p, columns, leave out."""
    ordered, ids = scaled.sort(dim=-1, descending=True, stable=True)
    ranks = torch.arange(scaled.shape[-1], device=scaled.device)
    ordered = ordered.masked_fill(ranks >= top_ks, -torch.inf)
    shares = ordered.softmax(-1)
    reached = shares.cumsum(-1) - shares >= top_ps
    reached[:, 0] = False  # the best token stays, whatever top_p
    return torch.empty_like(scaled).scatter_(-1, ids, ordered.masked_fill(reached, -torch.inf))


def _invert(shares: Tensor, words: Tensor) -> Tensor:
    """The first id of each row whose cumulative share exceeds (word + 1/2) / 2^32 of their sum."""
    numbers = ((words.long() & 0xFFFFFFFF).double() + 0.5) / 2.0**32
    cumulative = shares.double().cumsum(-1)
    found = torch.searchsorted(cumulative, numbers[:, None] * cumulative[:, -1:], right=True)[:, 0]
    return found.clamp(max=shares.shape[-1] - 1)  # only rows of NaN reach past the end


def _int32(values: Sequence[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)
