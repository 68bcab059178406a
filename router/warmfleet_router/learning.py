"""What answers teach: how long a worker takes to compute a prompt, how quick its links are, what it holds."""

from warmfleet_proto import router_pb2 as pb

from warmfleet_router.booking import Booking
from warmfleet_router.fleet.roster import Roster
from warmfleet_router.moving.moves import Moves

LONGEST_S = 86_400.0  # a time beyond this is nonsense
MOST_TOKENS = 1e6  # so is a longer completion
# Prompts that are computed in the same steps share the time of these steps. What is learned from a prompt is
# its own share where the prompt is short and the share small, as when the rest of a burst of siblings is
# computed beside the first of them. From any other prompt all the time that it took is learned (LOG.md).
FEW_TOKENS = 64
SMALL_SHARE = 0.25


def first_token(
    roster: Roster, moves: Moves, booking: Booking, request: pb.ProgressRequest, now: float
) -> None:
    """The first token of a request has been seen."""
    worker = booking.worker
    cached = min(request.cached_tokens, booking.prompt_tokens - 1)
    if not request.cached_later:
        booking.delivered = cached
        roster.counters.delivered_tokens += cached
    if booking.epoch != worker.epoch:
        return
    if not request.cached_later:  # a server that is not ours has succeeded only at the end of its answer
        roster.fleet.succeeded(worker)
        roster.computed(booking, None if request.cached_unknown else cached)
        _links(roster, moves, booking, request, cached, now)
    seconds, uncached = request.prefill_s, booking.prompt_tokens - cached
    if uncached <= FEW_TOKENS and 0.0 < request.work_s < SMALL_SHARE * seconds:
        seconds = request.work_s
    if 0.0 < seconds < LONGEST_S:
        worker.rates.observe_prefill(uncached, cached, seconds, booking.alone)
        roster.measured(worker)
    if 0.0 < request.ttft_s < LONGEST_S:
        booking.ttft_s = request.ttft_s
        worker.ttft.add(now, request.ttft_s)
        worker.rates.observe_ttft(booking.predicted_ttft_s, request.ttft_s)


def _links(
    roster: Roster, moves: Moves, booking: Booking, request: pb.ProgressRequest, cached: int, now: float
) -> None:
    """How long pulling from a peer took, and loading from the worker's own lower tiers."""
    group, worker = roster.group_of(booking.worker), booking.worker
    if group and booking.source and 0.0 < request.pull_s < LONGEST_S:
        prompt, without = booking.prompt_tokens, cached - min(request.pulled_tokens, cached)
        cold_s = worker.rates.prefill_s(prompt - without, without)
        saved_s = cold_s - worker.rates.prefill_s(prompt - cached, cached)
        moves.note(booking.source, worker.name, request, saved_s)
        came, seconds, failure = float(request.pulled_bytes), request.pull_s, request.pull_failure
        group.links.told(booking.source, worker.name, booking.pull_bytes, came, seconds, failure, now)
    if group and 0.0 < request.load_s < LONGEST_S:
        group.links.observe(worker.name, worker.name, request.loaded_bytes, request.load_s, now)


def answered(roster: Roster, booking: Booking, request: pb.FinishRequest, now: float) -> None:
    """A server that is not ours has answered in full: only then it tells what it had cached.

    The time to its first token includes its queue. So only a request that found the server idle tells what
    computing the prompt takes.
    """
    worker = booking.worker
    cached = _found(booking, request) if request.cached_known else None
    if cached is not None:
        booking.delivered = cached
        roster.counters.delivered_tokens += cached
    if booking.epoch != worker.epoch:
        return
    roster.answered(booking, cached, now, request.keyed_on_text)
    held = booking.expected if cached is None else cached
    if not booking.alone:
        return
    if booking.started and 0.0 < request.ttft_s < LONGEST_S:
        worker.rates.observe_prefill(booking.prompt_tokens - held, held, request.ttft_s, True)
        roster.measured(worker)
    elif not booking.started and request.completion_tokens and 0.0 < request.e2e_s < LONGEST_S:
        length = completion(booking, request)
        worker.rates.observe_whole(booking.prompt_tokens - held, held, length, request.e2e_s)
        roster.measured(worker)


def completion(booking: Booking, request: pb.FinishRequest) -> float:
    """Mean tokens of one of its choices."""
    return min(request.completion_tokens / booking.slots, MOST_TOKENS)


def _found(booking: Booking, request: pb.FinishRequest) -> int:
    """Tokens that the server had cached, scaled to the length that the prompt was taken to have: how many
    tokens a text has is only guessed here."""
    cached = float(request.cached_tokens)
    if request.keyed_on_text and request.prompt_tokens:
        cached *= booking.prompt_tokens / request.prompt_tokens
    return min(round(cached), booking.prompt_tokens - 1)
