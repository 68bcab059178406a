"""What a drawn token does to its sequence: one more token, or the choice's end."""

from warmfleet_worker.engine.base import Logprobs
from warmfleet_worker.sequence import Ending, Output, Reason, Request, Sequence, Started


def extend(sequence: Sequence, token_id: int, logprobs: tuple[Logprobs, ...], now: float) -> Output:
    """Appends the token unless it ends the choice: a stop id is named and not delivered."""
    request = sequence.request
    position = sequence.completion_tokens
    ending = None
    token_ids: tuple[int, ...] = ()
    if position >= request.max_tokens:  # nothing but the prompt was asked for
        ending = Ending(Reason.LENGTH)
    elif token_id in request.params.stop_ids:
        ending = Ending(Reason.STOP, stop_id=token_id)
    else:
        token_ids = (token_id,)
        sequence.token_ids.append(token_id)
        if position + 1 == request.max_tokens:
            ending = Ending(Reason.LENGTH)
    started, scores = _start(request, now)
    if not token_ids:
        logprobs = ()
    return Output(request, sequence.choices[0], position, token_ids, logprobs, scores, started, ending)


def _start(request: Request, now: float) -> tuple[Started | None, tuple[Logprobs, ...]]:
    """What goes with a request's first output, once."""
    if request.started:
        return None, ()
    assert request.admitted is not None
    request.started = True
    scores, request.prompt_logprobs = tuple(request.prompt_logprobs), []
    queue_s = request.admitted - request.submitted
    prefill_s = now - request.admitted
    started = Started(
        request.cached_tokens, request.brought, queue_s, prefill_s, request.pulled, request.loaded,
        request.work_s,
    )  # fmt: skip
    return started, scores
