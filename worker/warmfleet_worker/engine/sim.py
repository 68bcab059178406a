"""A self-checking engine without a model: wrong KV changes the text.

The pool holds one 64-bit value a slot. The value at position p is made from the value at p - 1 *as read
from the pool* and the token at p, so it stands for the whole prefix. The next token hashes every value
*read through the block table*: one wrong, stale, foreign or missing block gives another token than
``oracle``, which computes the same completion without any cache.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import msgspec
import numpy as np
import numpy.typing as npt
import xxhash

from warmfleet_worker.engine.base import Drawn, Finish, Logprobs, Plan, Sampling, StepResult, Work

_MASK = (1 << 64) - 1
_FACTOR = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2^64
_INVERSE = pow(_FACTOR, -1, 1 << 64)

_Values = npt.NDArray[np.uint64]


class Timing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Seconds that a simulated device takes. The defaults fit Llama-3-8B on one H200 (vLLM 0.26)."""

    step_s: float = 4.8e-3  # every step that decodes
    sequence_s: float = 27e-6  # each decoding sequence
    context_s: float = 25e-9  # each token that a decoding sequence attends to
    prefill_token_s: float = 24e-6  # each prompt token computed
    prefill_pair_s: float = 0.8e-9  # each (computed token, token before it)

    def seconds(self, plan: Plan) -> float:
        total, decodes = 0.0, 0
        for work in plan.works:
            count = len(work.token_ids)
            if count == 1 and work.completion_position:
                decodes += 1
                total += self.sequence_s + self.context_s * work.start
            else:
                pairs = count * (work.start + count / 2)
                total += self.prefill_token_s * count + self.prefill_pair_s * pairs
        return total + self.step_s if decodes else total


INSTANT = Timing(0.0, 0.0, 0.0, 0.0, 0.0)


class SimEngine:
    def __init__(
        self,
        model: str = "sim",
        *,
        block_size: int = 16,
        total_blocks: int = 4096,
        vocab_size: int = 32_000,
        max_context: int = 131_072,
        timing: Timing = INSTANT,
        clock: Callable[[], float] = lambda: 0.0,
        depth: int = 1,
    ) -> None:
        """``clock``: seconds; what a step really takes is part of what it is said to take."""
        self.name = "sim"
        self.model = model
        self.fingerprint = hashlib.sha256(f"warmfleet sim v1: {model}".encode()).digest()
        self.layout_text = f"uint64 {block_size}"
        self.layout = hashlib.sha256(f"warmfleet sim layout v1: {block_size}".encode()).digest()
        self.block_size = block_size
        self.block_bytes = 8 * block_size
        self.total_blocks = total_blocks
        self.vocab_size = vocab_size
        self.max_context = max_context
        self.timing = timing
        self.depth = depth
        self._clock = clock
        self._drawn: tuple[int, ...] = ()  # by the last step
        self.pool: _Values = np.zeros((total_blocks, block_size), np.uint64)

    def warm_up(self, chunk_tokens: int) -> None:
        """Nothing to compile."""

    def launch(self, plan: Plan) -> Finish:
        """A step is computed when it is waited for: nothing can count on what a device may have done."""
        return partial(self.execute, plan)

    def execute(self, plan: Plan) -> StepResult:
        began = self._clock()
        for copy in plan.copies:
            self.pool[copy.target] = self.pool[copy.source]
        drawn = tuple([self._compute(self._known(work)) for work in plan.works])
        self._drawn = tuple([token for each in drawn for token in each.token_ids])
        return StepResult(drawn, max(0.0, self.timing.seconds(plan) - (self._clock() - began)))

    def _known(self, work: Work) -> Work:
        if work.follows is None:
            return work
        return replace(work, token_ids=(self._drawn[work.follows],))

    cuda_pool = None

    def host_memory(self, size: int) -> memoryview:
        """See ``engine.base.Engine``."""
        return np.zeros(size, np.uint8).data

    def read_blocks(self, blocks: Sequence[int], copy: memoryview) -> None:
        """See ``engine.base.Engine``."""
        self._values(copy)[: len(blocks)] = self.pool[list(blocks)]

    def write_blocks(self, blocks: Sequence[int], copy: memoryview) -> None:
        """See ``engine.base.Engine``."""
        self.pool[list(blocks)] = self._values(copy)[: len(blocks)]

    def _values(self, copy: memoryview) -> _Values:
        whole = len(copy) // self.block_bytes * self.block_bytes
        return np.frombuffer(copy[:whole], np.uint64).reshape(-1, self.block_size)

    def _compute(self, work: Work) -> Drawn:
        blocks = np.concatenate([np.array(run.blocks, np.intp) for run in work.runs])
        start, end = work.start, work.start + len(work.token_ids)
        values = extend(self._before(work, blocks), work.token_ids)
        self._write(blocks, start, values)
        scores = () if work.prompt_logprobs is None else self._score(work, values)
        if work.sampling is None:
            return Drawn(prompt_logprobs=scores)
        read = self.pool[blocks[: -(-end // self.block_size)]].reshape(-1)[:end]
        tokens = draw(read, work.sampling, work.completion_position, work.choices, self.vocab_size)
        count = work.sampling.logprobs
        logprobs = () if count is None else tuple([self._logprobs(t, count) for t in tokens])
        return Drawn(tokens, logprobs, scores)

    def _write(self, blocks: npt.NDArray[np.intp], start: int, values: _Values) -> None:
        if len(values) == 1:  # decoding: indexing with arrays would take most of the step
            block, slot = divmod(start, self.block_size)
            self.pool[blocks[block], slot] = values[0]
            return
        positions = np.arange(start, start + len(values))
        self.pool[blocks[positions // self.block_size], positions % self.block_size] = values

    def _before(self, work: Work, blocks: npt.NDArray[np.intp]) -> int:
        if work.start == 0:
            return seed_value(work.root)
        block, slot = divmod(work.start - 1, self.block_size)
        return int(self.pool[blocks[block], slot])

    def _score(self, work: Work, values: _Values) -> tuple[Logprobs, ...]:
        """The token after each value; invented from what the value says of its prefix."""
        following = [*work.token_ids[1:], *([] if work.next_id is None else [work.next_id])]
        count = work.prompt_logprobs or 0
        return tuple(
            self._logprobs(token, count, -float(value & 0xFF) / 32)
            for token, value in zip(following, values.tolist(), strict=False)
        )

    def _logprobs(self, token: int, count: int, logprob: float = -0.125) -> Logprobs:
        top_ids = tuple((token + i) % self.vocab_size for i in range(count))
        return Logprobs(logprob, top_ids, tuple(logprob - i for i in range(count)))


def seed_value(root: bytes) -> int:
    """The value before position 0."""
    return xxhash.xxh64_intdigest(root)


def extend(before: int, token_ids: Sequence[int]) -> _Values:
    """v[p] = factor * v[p - 1] + mix(token[p]) modulo 2^64; shape [tokens]."""
    if len(token_ids) == 1:
        return np.array([(_FACTOR * before + _mix_one(token_ids[0])) & _MASK], np.uint64)
    count = len(token_ids)
    up, down = _powers(count)
    mixed = _mix(np.array(token_ids, np.uint64))
    return up * (np.uint64(before) + np.cumsum(mixed * down, dtype=np.uint64))


def draw(
    values: _Values, sampling: Sampling, position: int, choices: Sequence[int], vocab_size: int
) -> tuple[int, ...]:
    """One token a choice. Greedy choices draw the same one."""
    digest = xxhash.xxh3_64_intdigest(values.tobytes())
    if sampling.temperature == 0:
        return (digest % vocab_size,) * len(choices)
    tokens = []
    for choice in choices:
        counter = b"".join(n.to_bytes(8, "little") for n in (digest, sampling.seed & _MASK, position, choice))
        tokens.append(xxhash.xxh3_64_intdigest(counter) % vocab_size)
    return tuple(tokens)


def oracle(
    root: bytes,
    prompt: Sequence[int],
    count: int,
    *,
    sampling: Sampling | None = None,
    choice: int = 0,
    vocab_size: int = 32_000,
) -> list[int]:
    """The first ``count`` completion tokens, computed from scratch. ``root`` is the hash chain's."""
    values = extend(seed_value(root), prompt)
    completion: list[int] = []
    for position in range(count):
        if position:
            values = np.append(values, extend(int(values[-1]), completion[-1:]))
        (token,) = draw(values, sampling or Sampling(), position, (choice,), vocab_size)
        completion.append(token)
    return completion


_powers_known: tuple[_Values, _Values] = (np.zeros(0, np.uint64), np.zeros(0, np.uint64))


def _powers(count: int) -> tuple[_Values, _Values]:
    """factor^1.. and factor^-1.. modulo 2^64, at least ``count`` of each, cut to it."""
    global _powers_known
    if len(_powers_known[0]) < count:
        size = max(1024, 1 << (count - 1).bit_length())
        _powers_known = (
            np.cumprod(np.full(size, _FACTOR, np.uint64), dtype=np.uint64),
            np.cumprod(np.full(size, _INVERSE, np.uint64), dtype=np.uint64),
        )
    up, down = _powers_known
    return up[:count], down[:count]


def _mix_one(token: int) -> int:
    """``_mix`` of one token, without numpy."""
    x = (token + _FACTOR) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def _mix(tokens: _Values) -> _Values:
    """Spreads token ids over 64 bits (splitmix64's finaliser)."""
    x = tokens + np.uint64(_FACTOR)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
