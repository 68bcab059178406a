"""Seeded workloads for a fleet of OpenAI-compatible servers: what is asked, and when.

A workload is a list of turns sorted by arrival. The text is made of common four-letter words, each
one token of the demo model's vocabulary (a test counts) and of most byte-level BPE vocabularies; with a
token a byte a word is five. What the assistant "said" in
earlier turns is part of the script, so that every system under test sees the same prompts.
"""

import heapq
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from loadtest.words import WORDS

TOKENS_PER_WORD = {"demo": 1.0, "byte": 5.0}
TEMPLATE_TOKENS = {"demo": 6, "byte": 30}  # what a chat template adds to a message, about


class Message(NamedTuple):
    role: str
    words: int
    content: str

    def as_dict(self) -> dict[str, str]:
        return {"role": self.role, "content": self.content}


class Turn(NamedTuple):
    """One request: ``at`` seconds after the start, never before its conversation's previous turn ended."""

    at: float
    conversation: int
    messages: tuple[Message, ...]
    reusable: int  # leading messages that some earlier request of the workload has sent as well
    max_tokens: int

    def body(self, model: str, *, stream: bool = True) -> dict[str, Any]:
        """The body of ``POST /v1/chat/completions``: greedy, with usage in the last chunk of a stream."""
        body: dict[str, Any] = {
            "model": model,
            "messages": [m.as_dict() for m in self.messages],
            "max_tokens": self.max_tokens,
            "temperature": 0,
        }
        if stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        return body


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a workload, in words; every length is drawn between a third of its mean and five thirds."""

    question: int = 60
    answer: int = 48  # scripted, in later turns' history
    max_tokens: int = 32  # asked of the server, which may answer something else than the script


@dataclass(frozen=True, slots=True)
class AgentShape(Shape):
    """Few long prefixes of very unequal popularity (Zipf), each request a short task on one of them."""

    question: int = 250
    prefixes: int = 24
    shortest: int = 2_000
    longest: int = 24_000
    zipf: float = 1.0


@dataclass(frozen=True, slots=True)
class ChatShape(Shape):
    """Conversations that share one system prompt and carry their growing history."""

    system: int = 400
    turns: int = 6
    think_s: float = 4.0  # mean of the exponential gap between the turns of a conversation


def agent(rate: float, duration: float, seed: int, shape: AgentShape | None = None) -> list[Turn]:
    """Requests at ``rate`` a second (Poisson) for ``duration`` seconds, every one its own conversation."""
    shape, rng = shape or AgentShape(), random.Random(seed)
    systems = [message(rng, "system", words) for words in prefix_lengths(shape)]
    rng.shuffle(systems)  # popularity does not follow length
    weights = [1 / (rank + 1) ** shape.zipf for rank in range(shape.prefixes)]
    turns: list[Turn] = []
    sent: set[int] = set()
    for at in poisson(rng, rate, duration):
        (prefix,) = rng.choices(range(shape.prefixes), weights)
        task = message(rng, "user", around(rng, shape.question))
        turns.append(Turn(at, len(turns), (systems[prefix], task), int(prefix in sent), shape.max_tokens))
        sent.add(prefix)
    return turns


def chat(rate: float, duration: float, seed: int, shape: ChatShape | None = None) -> list[Turn]:
    """Turns at about ``rate`` a second for ``duration`` seconds from conversations that start as Poisson.

    Conversations start from ``turns * think_s`` seconds before the window, and their earlier turns are
    history that was never sent: so the load is even from the first second on.
    """
    shape, rng = shape or ChatShape(), random.Random(seed)
    system = message(rng, "system", shape.system)
    lead = shape.turns * shape.think_s
    starts = poisson(rng, rate / shape.turns, duration + lead)
    conversations = (dialogue(rng, shape, system, n, at - lead) for n, at in enumerate(starts))
    merged = heapq.merge(*conversations, key=lambda turn: turn.at)
    in_time = [turn for turn in merged if 0 <= turn.at < duration]
    return unsent_first(in_time)


def dialogue(rng: random.Random, shape: ChatShape, system: Message, number: int, at: float) -> list[Turn]:
    history: tuple[Message, ...] = (system,)
    turns = []
    for _ in range(shape.turns):
        history = (*history, message(rng, "user", around(rng, shape.question)))
        turns.append(Turn(at, number, history, len(history) - 1, shape.max_tokens))
        history = (*history, message(rng, "assistant", around(rng, shape.answer)))
        at += rng.expovariate(1 / shape.think_s)
    return turns


def unsent_first(turns: list[Turn]) -> list[Turn]:
    """Sets ``reusable`` to what the turns before have sent: an answer is new when it comes back."""
    sent: dict[int, int] = {}
    counted: list[Turn] = []
    for turn in turns:
        known = sent.get(turn.conversation, 1 if counted else 0)
        counted.append(turn._replace(reusable=known))
        sent[turn.conversation] = len(turn.messages)
    return counted


class Offered(NamedTuple):
    """What a workload asks of a fleet with one pooled cache that forgets nothing, in tokens."""

    requests: int
    prompt: int
    uncached: int
    completion: int

    @property
    def hit_rate(self) -> float:
        """The bound that no placement can pass (blocks round it down a little)."""
        return 1 - self.uncached / max(1, self.prompt)


def offered(turns: list[Turn], tokenizer: str = "demo") -> Offered:
    """Lengths by ``TOKENS_PER_WORD`` and ``TEMPLATE_TOKENS``, within a few percent of a server's count."""
    prompt = sum(tokens(turn.messages, tokenizer) for turn in turns)
    reusable = sum(tokens(turn.messages[: turn.reusable], tokenizer) for turn in turns)
    return Offered(len(turns), prompt, prompt - reusable, sum(turn.max_tokens for turn in turns))


def tokens(messages: tuple[Message, ...], tokenizer: str = "demo") -> int:
    words = sum(m.words for m in messages)
    return round(words * TOKENS_PER_WORD[tokenizer]) + len(messages) * TEMPLATE_TOKENS[tokenizer]


def prefix_lengths(shape: AgentShape) -> list[int]:
    """Lengths from the shortest to the longest, in equal ratios."""
    steps = max(1, shape.prefixes - 1)
    ratio = (shape.longest / shape.shortest) ** (1 / steps)
    return [round(shape.shortest * ratio**n) for n in range(shape.prefixes)]


def poisson(rng: random.Random, rate: float, duration: float) -> Iterator[float]:
    at = rng.expovariate(rate)
    while at < duration:
        yield at
        at += rng.expovariate(rate)


def around(rng: random.Random, mean: int) -> int:
    return rng.randint(max(1, mean // 3), max(1, mean * 5 // 3))


def message(rng: random.Random, role: str, words: int) -> Message:
    return Message(role, words, " ".join(rng.choices(WORDS, k=words)))
