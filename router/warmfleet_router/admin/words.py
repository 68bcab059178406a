"""Prices in words: what each term of one stands for. Pure."""

from collections.abc import Sequence

from warmfleet_proto.router_pb2 import Candidate

_TERMS = {
    "wait": "until the work before it is done",
    "bring": "for what it pulls, beyond the wait",
    "prefill": "to compute the {uncached} tokens that are not there",
    "externality": "that this delays the requests expected before its queue is empty",
    "decode": "of slower steps beside what it decodes already",
    "eviction": "to compute again what its new blocks displace",
    "lateness": "for being later than it could be elsewhere",
    "slow_start": "because it has just come and is given little at first",
}


def duration(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms" if abs(seconds) < 1.0 else f"{seconds:.2f} s"


def term(name: str, candidate: Candidate, prompt_tokens: int) -> str:
    """What the seconds of one term are for."""
    says = _TERMS.get(name, f"of {name}")
    return says.format(uncached=prompt_tokens - candidate.overlap_tokens)


def candidate(of: Candidate, prompt_tokens: int, least_s: float) -> str:
    """One sentence or two; ``least_s`` is the lowest price of all."""
    held = f"Holds {of.overlap_tokens - of.pulled_tokens} of the {prompt_tokens} prompt tokens"
    if of.pulled_tokens:
        held += f" and would pull {of.pulled_tokens} from {of.source} while it waits"
    parts = [f"{duration(t.seconds)} {term(t.name, of, prompt_tokens)}" for t in of.terms if t.seconds]
    more = of.price_s - least_s
    against = "the lowest price" if more <= 0 else f"{duration(more)} above the lowest"
    return f"{held}. Costs {_listed(parts)}: {duration(of.price_s)} in all, {against}."


def _listed(parts: Sequence[str]) -> str:
    if len(parts) < 2:
        return parts[0] if parts else "nothing"
    return f"{', '.join(parts[:-1])} and {parts[-1]}"
