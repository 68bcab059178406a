"""A request and its sequences: one sequence computes the prompt, then one decodes each choice."""

from array import array
from collections import Counter
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

from warmfleet_worker.engine.base import Copy, Logprobs, Run, Sampling
from warmfleet_worker.prefix import Node
from warmfleet_worker.source import Source
from warmfleet_worker.transfer.pull import Pull, Pulled


class Reason(IntEnum):
    """Why a choice ended; numbered as in worker.proto."""

    STOP = 1
    LENGTH = 2
    CANCELLED = 3
    DEADLINE = 4
    BAD_REQUEST = 5
    REJECTED = 6
    FAILED = 7


class Ending(NamedTuple):
    reason: Reason
    message: str = ""
    stop_id: int = 0  # the token that ended it, with STOP; it is not delivered


class Loaded(NamedTuple):
    """What came from the worker's own lower tiers, from the order to the last arrival."""

    seconds: float
    bytes: int


class Started(NamedTuple):
    """What became known of a request with its first output."""

    cached_tokens: int
    brought: Counter[Source]  # of those, by where they were fetched from; the rest was on the device
    queue_s: float  # submit to first admission
    prefill_s: float  # admission to first token
    pulled: Pulled | None = None  # what became of the request's pull
    loaded: Loaded | None = None
    work_s: float = 0.0  # of prefill_s, its share of the steps that computed it


class Key(NamedTuple):
    """Names a request inside the worker: a gateway and its handle."""

    gateway: str
    handle: int


@dataclass(frozen=True, slots=True)
class Params:
    sampling: Sampling
    max_tokens: int  # 0: compute (and score) the prompt only
    choices: int = 1
    stop_ids: frozenset[int] = frozenset()
    prompt_logprobs: int | None = None  # alternatives a prompt token; bypasses cached reads
    drawn: int = 0  # tokens at the prompt's end that another worker has drawn: the sampler counts them


@dataclass(slots=True, eq=False)
class Request:
    key: Key
    request_id: str
    root: bytes  # of the hash chain: model, block size and tenant salt
    prompt: bytes  # packed u32 token ids
    hashes: list[bytes]  # of the prompt's full blocks
    params: Params
    submitted: float
    deadline: float | None = None
    booking: int = 0
    number: int = 0  # in the order in which they were accepted
    pull: Pull | None = None  # blocks that a peer holds
    pulled: Pulled | None = None  # what became of it
    max_tokens: int = 0  # of params, clipped to the context at submit
    uncached: int = 0  # prompt tokens that seemed to need computing when it was submitted
    admitted: float | None = None
    started: bool = False  # its first output was made
    cached_tokens: int = 0  # of its first admission
    brought: Counter[Source] = field(default_factory=Counter)  # of these, tokens that were fetched for it
    loaded: Loaded | None = None
    work_s: float = 0.0  # its share, by prompt tokens, of the time of the steps that have computed it
    failures: int = 0  # engine steps that failed with it alone
    prompt_logprobs: list[Logprobs] = field(default_factory=list)
    live: "list[Sequence]" = field(default_factory=list)
    dropped: Ending | None = None  # asked to end at the next step boundary

    @property
    def bypasses(self) -> bool:
        """Reads no cache: every position has to be computed to be scored."""
        return self.params.prompt_logprobs is not None and not self.started


@dataclass(slots=True, eq=False)
class Sequence:
    """Prompt and completion of one choice, or of all choices until the prompt is computed."""

    request: Request
    choices: tuple[int, ...]
    token_ids: "array[int]"  # prompt, then completion
    prompt_tokens: int
    blocks: list[int] = field(default_factory=list)  # position p lies in blocks[p // block_size]
    spares: list[int] = field(default_factory=list)  # one for each further choice, taken at admission
    computed: int = 0  # leading tokens whose KV is in the blocks
    planned: int = 0  # the same, with those that steps under way compute
    drawing: int | None = None  # place of its next token among those that the newest step under way draws
    sealed: int = 0  # leading blocks that are readable by others
    node: Node | None = None  # the last of them
    sealable: bool = True  # False after a hash collision: the blocks from there on stay private
    copy: Copy | None = None  # of a block, to be made by the next step; its source is pinned until then
    alone: bool = False  # its last step failed together with others: the next one has it alone
    hashes: list[bytes] = field(default_factory=list)  # of the leading full blocks, as far as known
    matched: list[Node] = field(default_factory=list)  # of these, what was readable at the last look
    # What Fetching does for it while it waits:
    looked: bool = False  # it is decided what is fetched for it, if anything
    looked_at: float = 0.0  # when it was last tried to decide that
    reach: int = 0  # leading blocks that it should find readable once its fetch is over
    tried: bool = False  # something has been fetched for it
    losses: int = 0  # how often that was displaced before it was admitted
    waits: bool = False  # for a fetch, and is not to be admitted before that is over
    landed: int = 0  # blocks that have come for it
    _runs: tuple[Run, ...] = ()

    @property
    def completion_tokens(self) -> int:
        return len(self.token_ids) - self.prompt_tokens

    @property
    def under_way(self) -> bool:
        """Whether a step that has not finished computes tokens of it."""
        return self.planned > self.computed

    @property
    def uncomputed(self) -> int:
        """Known tokens whose KV is not in the blocks; 1 while decoding."""
        return len(self.token_ids) - self.computed

    @property
    def remaining(self) -> int:
        """Tokens to plan before the next can be drawn; 0 if a step under way has to finish first."""
        return len(self.token_ids) + (self.drawing is not None) - self.planned

    @property
    def runs(self) -> tuple[Run, ...]:
        if len(self._runs) != 1 or len(self._runs[0].blocks) != len(self.blocks):
            self._runs = (Run(tuple(self.blocks)),)
        return self._runs

    @property
    def held(self) -> list[int]:
        """Every pin that the sequence has, one entry each."""
        source = [self.copy.source] if self.copy else []
        return [*self.blocks, *self.spares, *source]

    def replace_block(self, index: int, block: int) -> None:
        self.blocks[index] = block
        self._runs = ()

    def forget_blocks(self) -> None:
        """Back to the start, after everything held was released."""
        self.blocks, self.spares, self._runs = [], [], ()
        self.computed = self.planned = self.sealed = 0
        self.node = self.copy = self.drawing = None
        self.sealable = True


def new_sequence(request: Request) -> Sequence:
    """The one that computes the prompt, for all choices."""
    token_ids = array("I", request.prompt)
    choices = tuple(range(request.params.choices))
    return Sequence(request, choices, token_ids, len(token_ids), hashes=request.hashes)


class Output(NamedTuple):
    """What one step made of one choice."""

    request: Request
    choice: int
    position: int  # completion position of the first token
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[Logprobs, ...] = ()
    prompt_logprobs: tuple[Logprobs, ...] = ()
    started: Started | None = None
    ending: Ending | None = None
