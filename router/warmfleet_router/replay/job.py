"""What a modelled worker is asked for, and what its steps are made of."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from warmfleet_proto.transfer_pb2 import Pull

from warmfleet_router.replay.cache import Node


class Job:
    """One request at a worker."""

    __slots__ = (
        "admitted_at",
        "answer",
        "booking",
        "cached_tokens",
        "completion_tokens",
        "computed",
        "copy",
        "drawing",
        "generated",
        "keys",
        "landed",
        "load_s",
        "loaded",
        "nodes",
        "number",
        "planned",
        "private",
        "prompt_tokens",
        "pull",
        "pull_bytes",
        "pull_s",
        "pulled",
        "slow_steps",
        "started_at",
        "steps",
        "submitted_at",
        "uncached",
        "waits",
        "work_s",
    )  # fmt: skip

    def __init__(
        self,
        booking: int,
        keys: Sequence[int],
        prompt_tokens: int,
        completion_tokens: int,
        now: float,
        answer: Iterable[int] = (),
    ) -> None:
        self.booking = booking
        self.keys = list(keys)  # of all full blocks, completion included as it grows
        self.answer = iter(answer)  # keys of blocks to come, where they are known
        self.prompt_tokens = prompt_tokens
        self.completion_tokens = completion_tokens
        self.submitted_at = now
        self.number = 0  # in the order in which they came to the worker
        self.admitted_at: float | None = None
        self.started_at: float | None = None
        self.work_s = 0.0  # of the steps that have computed it, by its share of their prompt tokens
        self.cached_tokens = 0  # of the first admission
        self.uncached = prompt_tokens  # seemed to need computing at submit
        self.generated = 0
        self.computed = 0
        self.planned = 0  # the same, with what steps under way compute
        self.drawing = False  # the newest step under way draws a token that it goes on with
        self.nodes: list[Node] = []  # readable leading blocks, pinned
        self.private = 0  # blocks after them
        self.copy: Node | None = None  # pinned until the next step has copied it
        self.waits = 0  # transfers under way that it waits for: not admitted before
        self.loaded = 0  # blocks that came from host memory
        self.load_s = 0.0
        self.pull: Pull | None = None  # not begun yet
        self.pulled = 0  # blocks that came from a peer
        self.landed = 0  # the same, until it runs
        self.pull_bytes = 0.0
        self.pull_s = 0.0
        self.steps = 0
        self.slow_steps = 0

    @property
    def length(self) -> int:
        return self.prompt_tokens + self.generated

    @property
    def uncomputed(self) -> int:
        return self.length - self.computed

    @property
    def remaining(self) -> int:
        """Tokens to plan before another one can be drawn."""
        return self.length + self.drawing - self.planned

    @property
    def blocks(self) -> int:
        return len(self.nodes) + self.private


class Share(NamedTuple):
    """What a step computes of one job."""

    job: Job
    start: int
    tokens: int


class Retired(NamedTuple):
    """What was given up while steps under way may still use it."""

    nodes: tuple[Node, ...]
    private: int


@dataclass(slots=True)
class Step:
    """``repeats`` equal steps in one go; more than one only when all of it decodes."""

    works: list[Share]
    repeats: int
    seconds: float
    retired: list[Retired] = field(default_factory=list)  # until it has finished

    def share_out(self, now: float) -> None:
        """It has finished: as in a worker, its time is its prompts', by their tokens."""
        shares = [(job, tokens) for job, _, tokens in self.works if tokens > 1 or job.started_at is None]
        total = sum(tokens for _, tokens in shares)
        for job, tokens in shares:
            if job.started_at is None and job.admitted_at is not None:
                since = now - self.seconds if job.work_s else job.admitted_at
                job.work_s += (now - since) * tokens / total


class Load(NamedTuple):
    """Blocks of a waiting job that host memory holds, to be brought to the device."""

    job: Job
    start: int  # blocks before them
    blocks: int


class Flight(NamedTuple):
    """Blocks on their way from a peer, with room taken for them."""

    keys: list[int]  # of the prefix up to the last of them
    nodes: list[Node]  # of what was there before, pinned
    blocks: int


class Done(NamedTuple):
    """What a finished step made: first tokens, and jobs that ended."""

    started: list[Job]
    ended: list[Job]
