"""Locust users for any OpenAI-compatible server: ``locust -f loadtest/locustfile.py --host URL``.

Every answer is streamed. Besides locust's own statistics (its response time is the end of the answer)
there are two metrics of request type TTFT and ITL, one entry a request and one a gap between chunks.
Text lengths and words are those of ``workloads``; conversations carry the answers really given.
"""

# mypy: disable-error-code="untyped-decorator,no-untyped-call"
# (locust leaves its event hooks untyped)

import itertools
import json
import random
import time
from collections.abc import Iterator
from typing import Any

import requests
from locust import HttpUser, between, events, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment

from loadtest.workloads import AgentShape, ChatShape, around, message, prefix_lengths

CHAT_PATH = "/v1/chat/completions"
CHAT, AGENT = ChatShape(), AgentShape()

_numbers = itertools.count()
_tokens = {"prompt": 0, "cached": 0}


@events.init_command_line_parser.add_listener
def _options(parser: LocustArgumentParser) -> None:
    parser.add_argument("--model", default="", help="Served name; the server's first model when left out")
    parser.add_argument("--seed", type=int, default=0, help="Of prefixes, tasks and conversations")
    parser.add_argument("--max-tokens", type=int, default=32, help="Of every answer")
    parser.add_argument(
        "--longest-prefix",
        type=int,
        default=0,
        help=f"Words of an agent's; half of the model's context, or {AGENT.longest}, when left out",
    )


class StreamingUser(HttpUser):
    """Sends chats and measures their streams; what is asked is for subclasses to say."""

    abstract = True
    model: str
    rng: random.Random

    def on_start(self) -> None:
        options = self.environment.parsed_options
        self.rng = random.Random(f"{options.seed} {next(_numbers)}")
        models = {each["id"]: each for each in self.client.get("/v1/models").json()["data"]}
        self.model = options.model or next(iter(models))
        self.most_tokens: int = models.get(self.model, {}).get("max_model_len") or 2 * AGENT.longest

    def ask(self, messages: list[dict[str, str]], name: str) -> str:
        """Returns the answer's text, empty when the request failed (locust counts the failure)."""
        body = {
            "model": self.model,
            "messages": messages,
            "max_tokens": self.environment.parsed_options.max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        began = time.perf_counter()
        request = self.client.post(CHAT_PATH, json=body, stream=True, catch_response=True, name=name)
        with request as response:
            if response.status_code != 200:
                response.failure(f"HTTP {response.status_code}: {response.text[:200]}")
                return ""
            answer = self._follow(response, name, began)
            response.request_meta["response_time"] = (time.perf_counter() - began) * 1000
            return answer

    def _follow(self, response: Any, name: str, began: float) -> str:
        text, last, kind = [], began, "TTFT"
        for chunk in chunks(response.iter_lines()):
            if "error" in chunk:
                response.failure(str(chunk["error"])[:200])
            count_usage(chunk.get("usage") or {})
            for choice in chunk.get("choices", ()):
                if piece := choice["delta"].get("content"):
                    now = time.perf_counter()
                    fire(self.environment, kind, name, now - last)
                    text.append(piece)
                    last, kind = now, "ITL"
        if not text:
            response.failure("the answer is empty")
        return "".join(text)


class ChatUser(StreamingUser):
    """Talks on and on: a shared system prompt, the growing history, a new conversation after some turns."""

    wait_time = between(0.5, 1.5)
    history: list[dict[str, str]]

    def on_start(self) -> None:
        super().on_start()
        rng = random.Random(self.environment.parsed_options.seed)  # the same for every user
        self.system = message(rng, "system", CHAT.system).as_dict()
        self.history = [self.system]

    @task
    def turn(self) -> None:
        if len(self.history) > 2 * CHAT.turns:
            self.history = [self.system]
        question = message(self.rng, "user", around(self.rng, CHAT.question))
        asked = [*self.history, question.as_dict()]
        if answer := self.ask(asked, "chat"):
            self.history = [*asked, {"role": "assistant", "content": answer}]


class AgentUser(StreamingUser):
    """Short tasks on few long prefixes, the popular ones far more often than the others."""

    wait_time = between(0.5, 1.5)

    def on_start(self) -> None:
        super().on_start()
        options = self.environment.parsed_options
        rng = random.Random(options.seed)
        longest = options.longest_prefix or min(AGENT.longest, self.most_tokens // 2)
        shape = AgentShape(longest=longest, shortest=longest // 12)
        self.systems = [message(rng, "system", words).as_dict() for words in prefix_lengths(shape)]
        rng.shuffle(self.systems)
        self.weights = [1 / (rank + 1) ** shape.zipf for rank in range(shape.prefixes)]

    @task
    def work(self) -> None:
        (system,) = self.rng.choices(self.systems, self.weights)
        question = message(self.rng, "user", around(self.rng, AGENT.question))
        self.ask([system, question.as_dict()], "agent")


def chunks(lines: Iterator[bytes]) -> Iterator[dict[str, Any]]:
    """The server-sent events of a stream, up to ``[DONE]``."""
    for line in lines:
        if line == b"data: [DONE]":
            return
        if line.startswith(b"data:"):
            yield json.loads(line[5:])


def count_usage(usage: dict[str, Any]) -> None:
    _tokens["prompt"] += usage.get("prompt_tokens", 0)
    _tokens["cached"] += (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0


def fire(environment: Environment, kind: str, name: str, seconds: float) -> None:
    environment.events.request.fire(
        request_type=kind,
        name=name,
        response_time=seconds * 1000,
        response_length=0,
        exception=None,
        context={},
    )


@events.test_start.add_listener
def _reset(**_: Any) -> None:
    _tokens.update(prompt=0, cached=0)


@events.test_stop.add_listener
def _report(environment: Environment, **_: Any) -> None:
    """Prints the fleet's hit rate: by the answers' usage, and as a Warmfleet counts it by worker."""
    print(f"hit rate {share(_tokens['cached'], _tokens['prompt'])} by the answers' usage")
    try:
        shown = requests.get(f"{environment.host}/admin/workers", timeout=5).json()
        nodes = {worker["worker"]: worker["hit_rate"]["total"] for worker in shown["workers"]}
    except (requests.RequestException, ValueError, LookupError, TypeError):
        return  # some other server, or its admin page has an address of its own
    for name, total in nodes.items():
        print(f"  {name}: {share(total['hit_tokens'], total['asked_tokens'])} since its start")


def share(cached: int, prompt: int) -> str:
    return f"{cached / max(1, prompt):.3f}: {cached} of {prompt} prompt tokens came from a cache"
