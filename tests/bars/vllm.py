"""Bar 6.1: two real vLLM servers on the CPU behind the gateway: what the router predicts of their caches
is what they find; beside round robin and vllm-router's ``kv_aware`` over the same two.

See ``vllm_server`` for what must be installed.
"""

import json
import random
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from statistics import mean
from typing import Any, NamedTuple

from tests.bars.conversations import Answer, Message, Shape, ask, talks, words
from tests.bars.fleet import base, get
from tests.bars.hf_folder import folder
from tests.bars.peers import vllm_kv_aware
from tests.bars.programs import LOGS, Starter, programs
from tests.bars.rows import Row
from tests.bars.vllm_server import BLOCK, MODEL, PYTHON, Server, running

SHAPE = Shape(talks=8, turns=4, system_words=120, turn_words=80, max_tokens=8, at_once=2, pause_s=0.3)
AGREE = 0.95
_TEXT = {"prompt": words(random.Random(5), 150)}
_CHAT = {"messages": [{"role": "user", "content": words(random.Random(6), 150)}]}
_CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"city": "Rome"}'}}
_NULL = dict.fromkeys(("refusal", "annotations", "audio", "function_call", "reasoning"))
_SENT_BACK = [
    {"role": "assistant", "content": None, "tool_calls": [_CALL], **_NULL},
    {"role": "tool", "tool_call_id": "c", "content": "sunny"},
]
KINDS: list[dict[str, Any]] = [
    _CHAT,
    _CHAT | {"n": 3, "temperature": 0.8},
    _CHAT | {"cache_salt": "s"},
    _CHAT | {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "none"},
    _CHAT | {"reasoning_effort": "low"},
    _CHAT | {"documents": [{"text": "x"}]},
    {"messages": [*_CHAT["messages"], *_SENT_BACK]},
    _CHAT | {"prompt_logprobs": 0},
    _TEXT,
    {"prompt": [_TEXT["prompt"]]},
    _TEXT | {"echo": True, "logprobs": 1},
]
TIMES = 3  # of each kind; a scored prompt between the others must not cost these what is known


class Told(NamedTuple):
    """Of one placement, in tokens."""

    expected: int
    delivered: int

    @property
    def agrees(self) -> bool:
        return self.expected // BLOCK == self.delivered // BLOCK


def main() -> list[Row]:
    if not PYTHON.exists():
        print("   skipped: vLLM is not installed; see vllm_server.py", flush=True)
        return []
    with programs() as starter:
        servers = [Server(starter, f"vllm-{n}") for n in range(2)]
        with running(servers):
            ours = Front(starter, "cheapest", servers)
            rows = [*ours.talks(), ours.kinds(), *beside(starter, servers, ours)]
            rows += ours.reset(servers[0])
            rows += ours.restart(servers[0])
    return rows


class Front:
    """A router with its gateway, and what is asked of it."""

    def __init__(self, starter: Starter, policy: str, servers: list[Server]) -> None:
        backends = "".join(
            "[[backends]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in s.backend.items())
            for s in servers
        )
        config = LOGS / f"vllm-{policy}.toml"
        config.write_text(f"[tokenizers]\n{MODEL} = {json.dumps(str(folder()))}\n{backends}")
        flags = ["--config", str(config), "--set", "http=127.0.0.1:0", "--set", "listen=127.0.0.1:0"]
        command = [sys.executable, "-m", "warmfleet_router", *flags, "--set", f"routing.policy={policy}"]
        self._program = starter.start(f"vllm-router-{policy}", command)
        self.url = base(self._program.ready()["http"])
        self.answers: list[Answer] = []
        for server in servers:
            self.until(server, lambda worker: worker["state"] == "healthy" and MODEL in self.models(), 30)

    def until(self, server: Server, true: Callable[[dict[str, Any]], bool], seconds: float) -> float:
        """When it came true of the server."""
        for _ in self._program.polls(seconds):
            if true(self.worker(server)):
                return time.monotonic()
        raise RuntimeError(f"it did not come to pass: {self.worker(server)}")

    def worker(self, server: Server) -> dict[str, Any]:
        workers: list[dict[str, Any]] = json.loads(get(f"{self.url}/admin/workers"))["workers"]
        return next(worker for worker in workers if worker["address"].partition("#")[0] == server.url)

    def talks(self) -> list[Row]:
        self.answers = talks(self.url, MODEL, SHAPE, 7)
        told = self.told(len(self.answers))
        wrong = [tuple(each) for each in told if not each.agrees]
        agree = 1 - len(wrong) / len(told)
        shown = f"{agree:.0%} of {len(told)}" + (f" (others: {wrong})" if wrong else "")
        what = "two vLLM: predicted = reported cached tokens"
        return [Row("6.1", what, shown, f">= {AGREE:.0%}", agree >= AGREE)]

    def kinds(self) -> Row:
        """Of the requests of each kind that come again what they find is known."""
        for fields in KINDS * TIMES:
            path = "/v1/chat/completions" if "messages" in fields else "/v1/completions"
            _post(self.url + path, json.dumps({"model": MODEL, "max_tokens": 2} | fields).encode())
            time.sleep(SHAPE.pause_s)
        told = self.told(len(KINDS) * TIMES)[len(KINDS) :]
        right = sum(each.agrees for each in told)
        what = f"vLLM, {len(KINDS)} kinds of requests again: predicted = reported"
        return Row("6.1", what, f"{right} of {len(told)}", "all", right == len(told))

    def reset(self, server: Server) -> Iterator[Row]:
        """A cache is dropped; the router learns of it with the next request to that server and no later."""
        chance, placed, asks = random.Random(99), "", 0
        while placed != server.url:  # a prompt whose home is the one to be reset
            messages = [{"role": "user", "content": words(chance, 200)}]
            self._ask(messages)
            placed, asks = self._latest()["url"], asks + 1
            assert asks < 20, "the other server gets everything"
        self._ask(messages)
        _post(f"{server.url}/reset_prefix_cache", b"")
        for _ in range(4):
            self._ask(messages)
        told = self.told(4)
        phantoms = [tuple(each) for each in told[1:] if each.expected // BLOCK > each.delivered // BLOCK]
        shown = f"{len(phantoms)} of 3, first {tuple(told[0])}"
        yield Row("6.1", "vLLM: phantom hits after a reset was noticed", shown, "0", not phantoms)

    def restart(self, server: Server) -> Iterator[Row]:
        """One is killed, requests go on; when it is back the router holds what it holds, and no more."""
        server.kill()
        self._ask([{"role": "user", "content": words(random.Random(3), 50)}])
        self.until(server, lambda worker: worker["state"] == "lost", 30)
        server.start()
        server.wait()
        ready = time.monotonic()
        empty = self.until(
            server, lambda worker: worker["state"] == "healthy" and not worker["held_blocks"], 30
        )
        seconds = empty - ready
        yield Row("6.1", "vLLM restarted: index = truth", f"{seconds:.1f} s", "<= 5 s", seconds <= 5)
        told = self.told(len(talks(self.url, MODEL, SHAPE._replace(talks=3), 8)))
        right = sum(each.agrees for each in told)
        what = "vLLM restarted: predicted = reported afterwards"
        yield Row("6.1", what, f"{right} of {len(told)}", f">= {AGREE:.0%}", right >= AGREE * len(told))

    def _ask(self, messages: list[Message]) -> None:
        ask(self.url, MODEL, messages, SHAPE.max_tokens)
        time.sleep(SHAPE.pause_s)

    def told(self, latest: int) -> list[Told]:
        """The oldest first."""
        return [
            Told(p["expected_tokens"], p["delivered_tokens"] or 0) for p in reversed(self._placements(latest))
        ]

    def models(self) -> list[str]:
        return [model["id"] for model in json.loads(get(f"{self.url}/v1/models"))["data"]]

    def used(self, latest: int) -> set[str]:
        """Workers of the latest placements."""
        return {placement["worker"] for placement in self._placements(latest)}

    def _latest(self) -> dict[str, Any]:
        placement = self._placements(1)[0]
        return placement | {"url": f"http://{placement['worker']}"}

    def _placements(self, latest: int) -> list[dict[str, Any]]:
        shown: list[dict[str, Any]] = json.loads(get(f"{self.url}/admin/placements"))["placements"][:latest]
        return shown


def beside(starter: Starter, servers: list[Server], ours: Front) -> Iterator[Row]:
    """The same kind of talks by other ways, each with texts of its own."""
    robin = Front(starter, "round_robin", servers)
    yield fresh(robin, ours, servers)
    robin.answers = talks(robin.url, MODEL, SHAPE, 107)
    ways = {"cheapest": ours.answers, "round robin": robin.answers}
    try:
        _, url = vllm_kv_aware(starter, [server.backend for server in servers], MODEL, BLOCK)
        ways["vllm-router kv_aware"] = talks(url, MODEL, SHAPE, 207)
    except (OSError, RuntimeError) as error:
        yield Row("6.4", "vllm-router kv_aware", f"did not serve: {str(error)[:200]}")
    hits = {way: sum(a.cached for a in got) / sum(a.prompt for a in got) for way, got in ways.items()}
    ttfts = {way: mean(a.ttft_s for a in got) for way, got in ways.items()}
    for way in ways:
        yield Row("6.4", f"two vLLM, {way}: hit, TTFT mean", f"{hits[way]:.2f}, {ttfts[way]:.2f} s")
    wanted = hits["cheapest"] > hits["round robin"]
    figure = f"{hits['cheapest'] / hits['round robin']:.2f}x"
    yield Row("6.1", "two vLLM: hit rate, cheapest over round robin", figure, "> 1x", wanted)
    figure = f"{ttfts['cheapest'] / ttfts['round robin']:.2f}x"
    yield Row("6.1", "two vLLM: TTFT mean, cheapest over round robin", figure)


def fresh(begun: Front, ours: Front, servers: list[Server]) -> Row:
    """A router that has just begun, beside one that has heard all that the servers told."""
    known, told = (sum(f.worker(s)["held_blocks"] for s in servers) for f in (begun, ours))
    what = "two idle vLLM: blocks that a new router knows of, of those told"
    return Row("6.1", what, f"{known} of {told}", "all", known == told > 0)


def _post(url: str, body: bytes) -> None:
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as response:
        response.read()
