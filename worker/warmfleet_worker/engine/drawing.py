"""What a step yields: tokens drawn after each work's last row, and scores of its prompt."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

from warmfleet_worker.engine.base import Drawn, Logprobs, Sampling, Work
from warmfleet_worker.engine.sampling import draw, logprobs

LOGIT_ROWS = 128  # scored at once: a chunk's logits over a large vocabulary may not fit beside the pool


class _Draw(NamedTuple):
    """One token to choose: from which row, and with which number."""

    row: int
    sampling: Sampling
    position: int
    choice: int


def draw_works(
    works: Sequence[Work], hidden: Tensor, logits: Callable[[Tensor], Tensor]
) -> tuple[Drawn, ...]:
    """One Drawn per work. ``hidden[rows, width]`` holds the works' rows one after another."""
    sampled = _sample(works, hidden, logits)
    drawn, first = [], 0
    for work in works:
        part = hidden[first : first + len(work.token_ids)]
        choices = [next(sampled) for _ in work.choices] if work.sampling else []
        tokens = tuple(token for token, _ in choices)
        scores = tuple(score for _, score in choices if score is not None)
        drawn.append(Drawn(tokens, scores, tuple(_score_prompt(work, part, logits))))
        first += len(part)
    return tuple(drawn)


def _draws(works: Sequence[Work]) -> Iterator[_Draw]:
    row = -1
    for work in works:
        row += len(work.token_ids)
        if work.sampling:
            for choice in work.choices:
                yield _Draw(row, work.sampling, work.completion_position, choice)


def _sample(
    works: Sequence[Work], hidden: Tensor, logits: Callable[[Tensor], Tensor]
) -> Iterator[tuple[int, Logprobs | None]]:
    """A token for each draw of the works, with its log-probability where that is asked for."""
    draws = list(_draws(works))
    if not draws:
        return
    rows = logits(hidden[[d.row for d in draws]])
    tokens = draw(rows, [(d.sampling, d.position, d.choice) for d in draws])
    wanted = [i for i, d in enumerate(draws) if d.sampling.logprobs is not None]
    counts = [draws[i].sampling.logprobs or 0 for i in wanted]
    scores = logprobs(rows[wanted], [tokens[i] for i in wanted], counts) if wanted else []
    by_draw = dict(zip(wanted, scores, strict=True))
    for i, token in enumerate(tokens):
        yield token, by_draw.get(i)


def _score_prompt(work: Work, hidden: Tensor, logits: Callable[[Tensor], Tensor]) -> Iterator[Logprobs]:
    """Scores of the prompt tokens that follow the work's rows, as far as they are known."""
    if work.prompt_logprobs is None:
        return
    targets = work.token_ids[1:] + (() if work.next_id is None else (work.next_id,))
    for first in range(0, len(targets), LOGIT_ROWS):
        scored = targets[first : first + LOGIT_ROWS]
        rows = logits(hidden[first : first + len(scored)])
        yield from logprobs(rows, scored, [work.prompt_logprobs] * len(scored))
