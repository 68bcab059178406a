"""What a worker tells of itself: its load now, and totals since its epoch began."""

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from warmfleet_proto.work import Work

from warmfleet_worker.sequence import Reason
from warmfleet_worker.source import Source


@dataclass(slots=True)
class Totals:
    prompt_tokens: int = 0  # of first admissions
    cached_tokens: int = 0  # of those, read from the cache
    brought: Counter[Source] = field(default_factory=Counter)  # of those, fetched for the request
    completion_tokens: int = 0
    requests: int = 0  # accepted
    preemptions: int = 0
    steps: int = 0
    failed_steps: int = 0
    step_seconds: float = 0.0
    work: Work = field(default_factory=Work)  # of finished steps
    endings: Counter[Reason] = field(default_factory=Counter)  # of choices


class Load(NamedTuple):
    """Sequences, tokens and blocks at this moment, and how hard pressed the cache is since the start."""

    running: int
    waiting: int
    prefill_tokens: int  # prompt tokens not computed yet, running and waiting
    context_tokens: int  # tokens that the running sequences attend to
    free_blocks: int
    cached_blocks: int
    pinned_blocks: int
    wanted_blocks: int  # different full blocks of the prompts of all requests, held or not
    evictions_total: int
    late_hits_total: int
