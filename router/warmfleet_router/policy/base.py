"""What a policy is asked and what it answers. Policies are pure and keep no state between requests."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import NamedTuple, Protocol

import msgspec

from warmfleet_router.fleet.worker import Worker
from warmfleet_router.policy.ring import Ring


class Ask(msgspec.Struct):
    """One request, as one group of workers sees it. Fields with a default are known only when the candidates
    are."""

    keys: Sequence[int]  # of the prompt's full blocks, in order
    block_size: int
    prompt_tokens: int
    ticket: int  # number of the placement: the same for a dry run of it
    pace: float = (
        0.0  # requests that come to a worker while it empties its queue, for each second of the queue
    )
    usual_s: float = 0.0  # the queue that the next requests will meet
    soonest_s: float = 0.0  # the least time to first token at any candidate
    shared: int = 0  # leading tokens that some worker holds, or is about to
    outgrown: float = (
        0.0  # 0 to 1: how much too few workers hold that prefix for the requests that ask for it
    )


@dataclass(slots=True)
class Pool:
    """The workers of one group that the request may go to."""

    workers: Sequence[Worker]  # in the order in which they joined
    members: frozenset[Worker]  # the same
    ring: Ring  # of all workers of the group
    in_flight: int  # requests at all of them; kept up as it changes

    def bound(self, factor: float) -> int:
        """The most requests with which a worker may be given one more: with that one it has ``factor`` times
        the mean, rounded up."""
        return ceil(factor * (self.in_flight + 1) / len(self.workers)) - 1


class PullPlan(NamedTuple):
    """Blocks that the worker would bring from a peer while the request waits."""

    source: Worker
    from_tokens: int  # leading tokens that the worker has itself
    tokens: int  # that it would bring, after these
    seconds: float  # until they are there, the wait for earlier pulls from the source included
    sending_s: float  # of those, in which the source's link is busy with them
    within_s: float  # if it takes longer than this, computing them is cheaper


class Candidate(NamedTuple):
    """One worker, with what serving the request there is predicted to take."""

    worker: Worker
    overlap: int  # tokens that need not be computed, pulled ones included
    wait_s: float
    bring_s: float  # for what is pulled or loaded, as far as it takes longer than the wait
    prefill_s: float
    decode_s: float  # what the sequences decoding beside it add to its own decoding
    weight: float  # slow start: below one for a worker that has just come
    nominated: int  # rank among the policy's own nominations, the higher the better; 0: not one
    eviction_s: float  # to compute again what the request displaces, times the chance that it is missed
    pull: PullPlan | None

    @property
    def held(self) -> int:
        """Tokens of ``overlap`` that are there already."""
        return self.pull.from_tokens if self.pull else self.overlap


class Choice(msgspec.Struct, frozen=True):
    candidate: Candidate
    reason: str  # one sentence


Terms = tuple[tuple[str, float], ...]


class Policy(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def pulls(self) -> bool:
        """Whether candidates may bring blocks from their peers."""

    def nominate(self, ask: Ask, pool: Pool) -> dict[int, int]:
        """Workers, by slot, to be priced in addition to those of most overlap and least load; and their
        ranks, the higher the better."""

    def choose(self, ask: Ask, candidates: Sequence[Candidate]) -> Choice:
        """One of ``candidates``, of which there is at least one."""

    def terms(self, ask: Ask, candidate: Candidate) -> Terms:
        """Named seconds; their sum is the candidate's price."""


def predicted(candidate: Candidate) -> Terms:
    """The predicted time to first token, as terms: for policies that do not go by price."""
    return ("wait", candidate.wait_s), ("bring", candidate.bring_s), ("prefill", candidate.prefill_s)


def nominated(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those that the policy named; all of them if it named none that can be used."""
    return [c for c in candidates if c.nominated] or list(candidates)
