"""What a step yields: tokens drawn after each work's last row, and scores of its prompt.

First as tensors, for which nobody waits; when the device has finished, as numbers.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor
from warmfleet_kernels import send

from warmfleet_worker.engine.base import Drawn, Logprobs, Work
from warmfleet_worker.engine.sampling import Draw, Scores, chances, draw, logprobs, score

LOGIT_ROWS = 128  # scored at once: a chunk's logits over a large vocabulary may not fit beside the pool


class Outcome(NamedTuple):
    """What a step has drawn and scored."""

    tokens: Tensor | None  # int [draws]
    scores: Scores | None = None  # of the draws that ask for them
    prompts: tuple[Scores, ...] = ()  # of the works that ask for them, ``LOGIT_ROWS`` tokens at a time


def draw_works(works: Sequence[Work], hidden: Tensor, logits: Callable[[Tensor], Tensor]) -> Outcome:
    """``hidden[rows, width]`` holds the works' rows one after another."""
    prompts = tuple(_score_prompts(works, hidden, logits))
    draws = draws_of(works)
    if not draws:
        return Outcome(None, None, prompts)
    ends = accumulate(len(work.token_ids) for work in works)
    last = [end - 1 for end, work in zip(ends, works, strict=True) for _ in range(work.draws)]
    rows = send(torch.tensor(last, dtype=torch.int32), hidden.device)
    return draw_rows(draws, logits(hidden.index_select(0, rows)))._replace(prompts=prompts)


def draws_of(works: Sequence[Work]) -> list[Draw]:
    """All draws of a step, in the order of works and choices."""
    return [
        Draw(w.sampling, w.completion_position, choice) for w in works if w.sampling for choice in w.choices
    ]


def draw_rows(draws: Sequence[Draw], logits: Tensor) -> Outcome:
    """One draw from each row of ``logits[n, vocab]``."""
    wanted = [i for i, each in enumerate(draws) if each.sampling.logprobs is not None]
    scored = torch.tensor(wanted, dtype=torch.int32) if wanted else None
    how, scored = send((chances(draws), scored), logits.device)
    tokens = draw(logits, how)
    if scored is None:
        return Outcome(tokens)
    most = max(_counts(draws))
    return Outcome(tokens, score(logits.index_select(0, scored), tokens.index_select(0, scored), most))


def read(works: Sequence[Work], outcome: Outcome) -> tuple[Drawn, ...]:
    """One Drawn per work, from an outcome on the host."""
    tokens = iter([] if outcome.tokens is None else outcome.tokens.tolist())
    scores = iter(logprobs(outcome.scores, _counts(draws_of(works))) if outcome.scores else [])
    prompts = iter(outcome.prompts)
    drawn = []
    for work in works:
        own = tuple([next(tokens) for _ in range(work.draws)])
        scored = work.sampling is not None and work.sampling.logprobs is not None
        drawn.append(Drawn(own, tuple([next(scores) for _ in own if scored]), tuple(_prompt(work, prompts))))
    return tuple(drawn)


def _counts(draws: Sequence[Draw]) -> list[int]:
    """Alternatives of each draw that asks for scores."""
    return [each.sampling.logprobs for each in draws if each.sampling.logprobs is not None]


def _targets(work: Work) -> list[tuple[int, ...]]:
    """The prompt tokens that follow the work's rows, as far as they are known and to be scored."""
    if work.prompt_logprobs is None:
        return []
    targets = work.token_ids[1:] + (() if work.next_id is None else (work.next_id,))
    return [targets[first : first + LOGIT_ROWS] for first in range(0, len(targets), LOGIT_ROWS)]


def _score_prompts(
    works: Sequence[Work], hidden: Tensor, logits: Callable[[Tensor], Tensor]
) -> Iterator[Scores]:
    first = 0
    for work in works:
        row = first
        for targets in _targets(work):
            token_ids = send(torch.tensor(targets, dtype=torch.int32), hidden.device)
            rows = logits(hidden[row : row + len(targets)])
            yield score(rows, token_ids, work.prompt_logprobs or 0)
            row += len(targets)
        first += len(work.token_ids)


def _prompt(work: Work, prompts: Iterator[Scores]) -> Iterator[Logprobs]:
    for targets in _targets(work):
        yield from logprobs(next(prompts), [work.prompt_logprobs or 0] * len(targets))
