"""A sequence's share of the next step."""

from warmfleet_worker.engine.base import Work
from warmfleet_worker.sequence import Sequence


def plan_work(sequence: Sequence, count: int, place: int) -> Work:
    """The next ``count`` tokens of the sequence, which counts them as planned. ``place`` is that of its next
    token among those that the step draws."""
    request, start = sequence.request, sequence.planned
    end, token_ids = start + count, sequence.token_ids
    follows = sequence.drawing
    awaited = int(follows is not None)  # its last token is not drawn yet, and known by its place only
    last = end == len(token_ids) + awaited
    position = sequence.completion_tokens + awaited
    scored = None if request.started or awaited else request.params.prompt_logprobs
    sequence.planned = end
    goes_on = last and len(sequence.choices) == 1 and position + 1 < request.max_tokens
    sequence.drawing = place if goes_on else None
    return Work(
        (0,) if awaited else tuple(token_ids[start:end]),
        start,
        sequence.runs,
        request.root,
        request.params.sampling if last else None,
        sequence.choices,
        request.params.drawn + position,
        scored,
        None if last or scored is None else token_ids[end],
        follows,
    )
