"""Conversations that share a system prompt, asked of a real engine turn by turn, and what they meet."""

import json
import random
import threading
import time
import urllib.request
from typing import Any, NamedTuple

Message = dict[str, str]
WORDS = ("the", "of", "river", "stone", "light", "under", "window", "seven", "green", "slowly", "glass")
ANSWER_S = 300.0


class Shape(NamedTuple):
    talks: int
    turns: int
    system_words: int
    turn_words: int
    max_tokens: int
    at_once: int
    pause_s: float  # after an answer: an engine's events may come a moment after it


class Answer(NamedTuple):
    text: str
    ttft_s: float
    prompt: int  # tokens; 0 where the server does not tell
    cached: int


def talks(url: str, model: str, shape: Shape, seed: int) -> list[Answer]:
    """Raises RuntimeError unless all turns are answered."""
    chance = random.Random(seed)
    system = {"role": "system", "content": words(chance, shape.system_words)}
    turns = [[words(chance, shape.turn_words) for _ in range(shape.turns)] for _ in range(shape.talks)]
    answers: list[Answer] = []

    def one_after_another(mine: list[list[str]]) -> None:
        """A turn of each in turn, as talks of several people mix."""
        messages = [[system] for _ in mine]
        for turn in range(shape.turns):
            for talk, said in zip(mine, messages, strict=True):
                said.append({"role": "user", "content": talk[turn]})
                answer = ask(url, model, said, shape.max_tokens)
                said.append({"role": "assistant", "content": answer.text})
                answers.append(answer)
                time.sleep(shape.pause_s)

    asking = [
        threading.Thread(target=one_after_another, args=(turns[n :: shape.at_once],))
        for n in range(shape.at_once)
    ]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    if len(answers) != shape.talks * shape.turns:
        raise RuntimeError(f"{url}: {len(answers)} of {shape.talks * shape.turns} turns were answered")
    return answers


def ask(url: str, model: str, messages: list[Message], max_tokens: int) -> Answer:
    body: dict[str, Any] = {"model": model, "messages": messages, "max_tokens": max_tokens, "temperature": 0}
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), headers)
    began, ttft_s, text = time.monotonic(), 0.0, ""
    usage: dict[str, Any] = {}
    with urllib.request.urlopen(request, timeout=ANSWER_S) as response:
        for line in response:
            if not line.startswith(b"data: {"):
                continue
            chunk = json.loads(line[6:])
            said = "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
            ttft_s = ttft_s or (time.monotonic() - began if said else 0.0)
            text, usage = text + said, chunk.get("usage") or usage
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
    return Answer(text, ttft_s, usage.get("prompt_tokens", 0), cached or 0)


def words(chance: random.Random, count: int) -> str:
    return " ".join(chance.choice(WORDS) for _ in range(count))
