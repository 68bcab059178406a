"""What an engine is asked to do in one step, and what it answers.

The scheduler decides (which tokens, which blocks); an engine computes. It knows nothing of
requests, caching or the network, and never allocates or frees a block.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol


class Run(NamedTuple):
    """Consecutive blocks of a sequence whose keys sit ``delta`` positions before where they are read.

    An ordinary sequence is one run with delta 0. Attention rotates the query by -delta for a run.
    """

    blocks: tuple[int, ...]
    delta: int = 0


class Copy(NamedTuple):
    """Copy one block's content inside the pool before the step computes (fork, private copy)."""

    source: int
    target: int


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to choose a token. Random numbers: Philox4x32-10, key = seed, counter = (position, choice)."""

    temperature: float = 0.0  # 0: greedy
    top_p: float = 1.0
    top_k: int = 0  # 0: off
    min_p: float = 0.0
    seed: int = 0
    logprobs: int | None = None  # alternatives to report with each token; None: no logprobs


@dataclass(frozen=True, slots=True)
class Work:
    """One sequence's share of a step: compute KV for ``token_ids`` at positions ``start`` and on.

    Position p lives in slot p % block_size of the (p // block_size)-th block of the runs in order.
    """

    token_ids: tuple[int, ...]
    start: int
    runs: tuple[Run, ...]
    root: bytes  # of the hash chain: what the KV means
    sampling: Sampling | None = None  # sample after the last token; None: a prompt not finished yet
    choices: tuple[int, ...] = (0,)  # one token is drawn for each
    completion_position: int = 0  # of the token to be drawn: the sampler's counter
    prompt_logprobs: int | None = None  # alternatives to report with each prompt token that this chunk scores
    next_id: int | None = None  # the prompt's token after this chunk, so that prompt_logprobs can score it
    follows: int | None = None  # its one token is the one that the step before draws in this place (works in
    # order, choices in order): it was not known when the step was planned, and a 0 stands for it

    @property
    def draws(self) -> int:
        """Tokens that it draws."""
        return len(self.choices) if self.sampling else 0


@dataclass(frozen=True, slots=True)
class Plan:
    """One engine step: copies first, then all works as one batch."""

    works: tuple[Work, ...]
    copies: tuple[Copy, ...] = ()


class Logprobs(NamedTuple):
    """A token's own log-probability and the most likely alternatives, best first."""

    logprob: float
    top_ids: tuple[int, ...] = ()
    top_logprobs: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Drawn:
    """What a Work yields. ``token_ids[i]`` belongs to ``choices[i]``; empty when nothing was sampled.

    ``prompt_logprobs[i]`` scores the prompt token at position start + i + 1 (the chunk's last entry
    scores ``Work.next_id``, the next chunk's first token, and is absent at the prompt's end).
    """

    token_ids: tuple[int, ...] = ()
    logprobs: tuple[Logprobs, ...] = ()
    prompt_logprobs: tuple[Logprobs, ...] = ()


@dataclass(frozen=True, slots=True)
class StepResult:
    """One Drawn per Work, in order. The step counts as finished ``delay_s`` after execute returns."""

    drawn: tuple[Drawn, ...]
    delay_s: float = 0.0  # a simulated device's time; 0 for a real one


Finish = Callable[[], StepResult]
"""Blocks the calling thread until the device has finished the step. All blocks that it wrote are readable
after. Raises whatever made the step fail."""


class Engine(Protocol):
    """A device with a pool of ``total_blocks`` KV blocks."""

    @property
    def name(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def fingerprint(self) -> bytes:
        """SHA-256 of what the KV means: canonical configuration and per-tensor digests."""

    @property
    def layout(self) -> bytes:
        """Fingerprint of a stored copy: dtype, block size, layers, heads, head size."""

    @property
    def layout_text(self) -> str:
        """What ``layout`` is the fingerprint of, for people."""

    @property
    def block_size(self) -> int: ...
    @property
    def block_bytes(self) -> int: ...
    @property
    def total_blocks(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def max_context(self) -> int: ...

    @property
    def depth(self) -> int:
        """Steps that may be under way at once: 1, or 2 where the next can be planned while one runs."""

    def warm_up(self, chunk_tokens: int) -> None:
        """Compile and plan what steps of up to that many prompt tokens need, in the thread that launches."""

    def launch(self, plan: Plan) -> Finish:
        """Hand a step to the device, behind those launched before, which finish first. One thread launches
        and finishes all of them."""

    @property
    def cuda_pool(self) -> Any:
        """The pool, a ``torch.Tensor`` [blocks, ...], if it lies on a CUDA device; else None."""

    def host_memory(self, size: int) -> memoryview:
        """So many bytes that blocks are copied from and to at the link's full rate."""

    def read_blocks(self, blocks: Sequence[int], copy: memoryview) -> None:
        """Their bytes, one block after another, into ``copy``. From any thread, also beside steps: the
        blocks are readable, and the caller looks at their generations before and after."""

    def write_blocks(self, blocks: Sequence[int], copy: memoryview) -> None:
        """The reverse. When it returns, the next step can read them. From any thread, also beside
        steps: the caller alone holds the blocks."""
