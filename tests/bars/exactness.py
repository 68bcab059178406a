"""Bar 2: the cache, batching and chunking change no logit, and transformers agrees; real model, float32.

A conversation's text is what the engine writes greedily alone, without prefix cache and without cuts. Its
logits at every position, computed again in one forward, are the reference. In every setting the scheduler
then serves the same conversations turn by turn, fed the reference's tokens: all logits that it computes
are compared, and what it would have drawn must be the reference's token wherever the reference's own top
two logits are further apart than ``TIE``. (Up to its first difference a text written freely is this one.)

Nearly all the time goes into products over weights, and several threads slow those down where other programs
want the cores as well: settings run side by side instead, in a process of one thread each.
"""

import math
import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from itertools import product
from random import Random
from typing import Any, NamedTuple

import torch
from torch import Tensor
from warmfleet_kernels import Segment, prepare
from warmfleet_kernels import Sequence as Rows
from warmfleet_router.prompt.byte_level import from_gguf
from warmfleet_router.prompt.gguf_header import read_metadata
from warmfleet_worker.engine.base import Drawn, Finish, Plan, Run, Sampling, StepResult, Work
from warmfleet_worker.engine.drawing import draw_works, read
from warmfleet_worker.engine.torch import TorchEngine
from warmfleet_worker.models.load import open_source
from warmfleet_worker.sequence import Request

from tests.bars.rows import Row
from tests.model import demo_model_path
from tests.unit.worker.driver import Driver

TIE = 1e-3
AGREES, TRANSFORMERS_AGREES = 1e-4, 1e-3  # largest difference of a logit
BLOCKS = 512
SYSTEM = "You are a patient teacher who answers in short, plain sentences."
WORDS = """why does the river bend before it meets the sea and how do old maps show where it ran when nobody
had measured the hills , explain with one example from farming , trade or music please""".split()  # noqa: SIM905


class Setting(NamedTuple):
    cached: bool
    concurrent: int
    chunk: int

    def __str__(self) -> str:
        requests = f"{self.concurrent} request{'s' * (self.concurrent > 1)}"
        return f"cache {'on' if self.cached else 'off'}, {requests}, chunks of {self.chunk}"


SETTINGS = [Setting(*how) for how in product((False, True), (1, 8), (16, 64, 512))]


@dataclass
class Conversation:
    """``token_ids`` are prompt and answer of every turn; ``turns[i]`` is where the i-th answer begins."""

    token_ids: list[int]
    turns: list[int]
    reply: int
    logits: Tensor = field(default_factory=lambda: torch.empty(0))  # [positions, vocab]


class Size(NamedTuple):
    """How long the conversations are: each user turn takes one of ``words``.

    Every ``rare``th begins with ``most`` words instead: more than the largest chunk.
    """

    turns: int
    words: tuple[int, ...]
    reply: int
    rare: int = 0
    most: int = 0

    def draw(self, random: Random, conversation: int, turn: int) -> int:
        long = self.rare and turn == 0 and conversation % self.rare == self.rare - 1
        return self.most if long else random.choice(self.words)


SHORT, LONG = Size(2, (2, 5, 12), 2), Size(3, (3, 8, 32), 4, rare=25, most=450)


@dataclass
class Found:
    """What one setting showed."""

    difference: float = 0.0
    rows: int = 0
    drawn: int = 0
    wrong: int = 0  # drawn tokens that differ from the reference's, and no tie excuses
    cached_tokens: int = 0


class Bench:
    """The demo model in float32, and conversations that it has written."""

    def __init__(self, count: int, size: Size, threads: int | None = None) -> None:
        path = str(demo_model_path())
        self.engine = TorchEngine.load(
            path, name="demo", dtype="float32", device="cpu", total_blocks=BLOCKS, threads=threads
        )
        self._tokenizer = from_gguf(read_metadata(path))
        self.conversations = [self._write(number, size) for number in range(count)]

    def transformers_difference(self) -> float:
        """The largest difference to ``LlamaForCausalLM`` over the same weights."""
        model = twin(str(demo_model_path()))
        with torch.inference_mode():
            logits = (model(torch.tensor([c.token_ids])).logits[0] for c in self.conversations)
            pairs = zip(logits, self.conversations, strict=True)
            return max(difference(theirs, c.logits) for theirs, c in pairs)

    def run(self, setting: Setting, conversations: Sequence[Conversation]) -> Found:
        """The conversations through a scheduler of their own, ``concurrent`` of them at a time."""
        found = Found()
        self.engine.pool.fill_(torch.nan)
        server = Server(self.engine, setting, found)
        for first in range(0, len(conversations), setting.concurrent):
            server.converse(conversations[first : first + setting.concurrent])
        return found

    def _write(self, number: int, size: Size) -> Conversation:
        random = Random(number)
        token_ids = self._encode(f"<|im_start|>system\n{SYSTEM}<|im_end|>\n")
        turns: list[int] = []
        computed = 0
        for turn in range(size.turns):
            words = " ".join(random.choices(WORDS, k=size.draw(random, number, turn)))
            token_ids += self._encode(f"<|im_start|>user\n{words}<|im_end|>\n<|im_start|>assistant\n")
            turns.append(len(token_ids))
            answer = list(self._answer(token_ids, computed, size.reply))
            computed = len(token_ids) + len(answer) - 1
            token_ids += answer
            token_ids += self._encode("<|im_end|>\n")
        return Conversation(token_ids, turns, size.reply, self._forward(token_ids))

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def _answer(self, prompt: list[int], start: int, count: int) -> Iterator[int]:
        """``count`` greedy tokens, alone; the prompt's KV before ``start`` is there from the turn before."""
        runs = (Run(tuple(range(-(-(len(prompt) + count) // self.engine.block_size)))),)
        chunk = tuple(prompt[start:])
        for _ in range(count):
            work = Work(chunk, start, runs, b"", Sampling())
            start += len(chunk)
            chunk = self.engine.execute(Plan((work,))).drawn[0].token_ids
            yield chunk[0]

    @torch.inference_mode()
    def _forward(self, token_ids: list[int]) -> Tensor:
        """All logits, in one forward over fresh blocks."""
        engine, count = self.engine, len(token_ids)
        table = tuple(range(-(-count // engine.block_size)))
        batch = prepare([Rows(0, count, 0, (Segment(table),))], engine.pool)
        hidden = engine.llama.forward(torch.tensor(token_ids), torch.arange(count), batch, engine.pool)
        return engine.llama.logits(hidden)


class Server:
    """The scheduler, and an engine that compares what it computes and draws the reference's tokens."""

    depth = 1

    def __init__(self, engine: TorchEngine, setting: Setting, found: Found) -> None:
        self._engine, self._setting, self._found = engine, setting, found
        self._driver = Driver(
            engine.total_blocks,
            block_size=engine.block_size,
            max_running=setting.concurrent,
            chunk_tokens=setting.chunk,
        )
        self._driver.engine = self  # type: ignore[assignment]
        self._asked: dict[Request, Conversation] = {}
        self._salts = iter(range(1 << 30))
        self.fingerprint, self.block_size = engine.fingerprint, engine.block_size

    def converse(self, conversations: Sequence[Conversation]) -> None:
        """Turn by turn, all conversations of a turn at once."""
        for turn in range(len(conversations[0].turns)):
            for conversation in conversations:
                salt = b"" if self._setting.cached else str(next(self._salts)).encode()
                prompt = conversation.token_ids[: conversation.turns[turn]]
                request = self._driver.submit(prompt, conversation.reply, salt=salt)
                self._asked[request] = conversation
            self._driver.run()
        self._found.cached_tokens = self._driver.scheduler.totals.cached_tokens

    def launch(self, plan: Plan) -> Finish:
        logits = self._engine.llama.logits(self._engine.compute(plan))
        outcome = draw_works(plan.works, logits, lambda rows: rows)  # the head is not multiplied twice
        result = StepResult(tuple(self._forced(plan, logits, read(plan.works, outcome))))
        return lambda: result

    def _forced(self, plan: Plan, logits: Tensor, drawn: Sequence[Drawn]) -> Iterator[Drawn]:
        """Compares each work with its conversation and answers with that one's token."""
        asked = self._driver.scheduler.requests.values()
        requests = {sequence.runs: request for request in asked for sequence in request.live}
        row = 0
        for work, result in zip(plan.works, drawn, strict=True):
            conversation = self._asked[requests[work.runs]]
            end = work.start + len(work.token_ids)
            assert list(work.token_ids) == conversation.token_ids[work.start : end]
            wanted = conversation.logits[work.start : end]
            found = logits[row : row + len(wanted)]
            self._found.difference = max(self._found.difference, difference(found, wanted))
            self._found.rows += len(wanted)
            row += len(wanted)
            yield self._judge(result, wanted[-1], conversation.token_ids[end])

    def _judge(self, result: Drawn, wanted: Tensor, token_id: int) -> Drawn:
        if not result.token_ids:
            return result
        best, second = wanted.topk(2).values.tolist()
        self._found.drawn += 1
        self._found.wrong += result.token_ids != (token_id,) and best - second > TIE
        return Drawn((token_id,))


def difference(a: Tensor, b: Tensor) -> float:
    """The largest; NaN counts as infinite."""
    largest = float((a - b).abs_().max())  # of anything and NaN that is NaN
    return math.inf if math.isnan(largest) else largest


def twin(path: str) -> Any:
    """transformers' model over the weights that our loader reads from ``path``."""
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    source = open_source(path)
    config = source.config
    theirs = LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden,
        intermediate_size=config.intermediate,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        max_position_embeddings=config.max_context,
        rms_norm_eps=config.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        tie_word_embeddings=config.tied,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.device("meta"):  # random weights would cost more than the comparison
        model = LlamaForCausalLM(theirs)
    state = {name: source.tensor(name) for name in model.state_dict() if name != "lm_head.weight"}
    model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()
    model.model.rotary_emb = LlamaRotaryEmbedding(theirs)
    model.train(False)
    return model


def main(count: int = 50) -> list[Row]:
    """Every conversation in every setting."""
    began = time.perf_counter()

    def say(what: str) -> None:
        print(f"   {time.perf_counter() - began:4.0f} s  {what}", flush=True)

    global _bench
    _bench = Bench(count, LONG, threads=1)
    tokens = [len(conversation.token_ids) for conversation in _bench.conversations]
    say(f"{count} conversations written, {min(tokens)} to {max(tokens)} tokens, {sum(tokens)} in all")
    theirs = _bench.transformers_difference()
    what = f"largest difference of a logit, {count} conversations"
    rows = [Row("2", f"{what}, transformers", f"{theirs:.1e}", "<= 1e-3", theirs <= TRANSFORMERS_AGREES)]
    say(str(rows[0]))
    for row in side_by_side(what):
        say(str(row))
        rows.append(row)
    return rows


_bench: Bench  # of ``main``: its processes inherit it, weights, references and all


def side_by_side(what: str) -> Iterator[Row]:
    """A row for each setting, in the order in which they end; the longest begin first."""
    fork = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(os.cpu_count(), mp_context=fork) as pool:
        order = sorted(SETTINGS, key=lambda s: (s.concurrent, s.cached, s.chunk))
        for done in as_completed([pool.submit(measure, setting) for setting in order]):
            setting, found = done.result()
            yield judged(what, setting, found)


def measure(setting: Setting) -> tuple[Setting, Found]:
    return setting, _bench.run(setting, _bench.conversations)


def judged(what: str, setting: Setting, found: Found) -> Row:
    figure = f"{found.difference:.1e} over {found.rows} rows, {found.wrong} of {found.drawn} tokens differ"
    figure += f", {found.cached_tokens} tokens cached"
    exact = found.difference <= AGREES and found.wrong == 0
    used = (found.cached_tokens > 0) == setting.cached
    return Row("2", f"{what}, {setting}", figure, "<= 1e-4, 0 tokens", exact and used)
