"""Other routers over the same workers, each in an environment of its own."""

import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.bars.programs import Program, Starter

ENVIRONMENT = Path(__file__).parents[2] / ".run" / "peers"
SGLANG = "sglang-router==0.3.2"
VLLM_ROUTER = "vllm-router==0.1.17"


def sglang(starter: Starter, workers: Sequence[str], *flags: str) -> tuple[Program, str]:
    """sglang-router with its cache-aware policy over workers' base URLs, and its own base URL."""
    port = free_port()
    command = [
        *(python(SGLANG), "-m", "sglang_router.launch_router", "--host", "127.0.0.1", "--port", str(port)),
        *("--prometheus-port", str(free_port()), "--log-level", "error"),
        *("--policy", "cache_aware", *flags, "--worker-urls", *workers),
    ]
    program = starter.start("sglang-router", command)
    url = f"http://127.0.0.1:{port}"
    for _ in program.polls(30):
        if answers(f"{url}/v1/models") and answers(f"{url}/health"):
            return program, url
    raise RuntimeError(f"sglang-router is not ready: {program.tail()}")


def vllm_kv_aware(
    starter: Starter, backends: Sequence[dict[str, Any]], model: str, block: int
) -> tuple[Program, str]:
    """vllm-router by the KV events of ``backends`` (url, events, replay), and its own base URL."""
    port = free_port()
    command = [
        *(python(VLLM_ROUTER), "-m", "vllm_router.launch_router", "--host", "127.0.0.1", "--port", str(port)),
        *("--prometheus-port", str(free_port()), "--log-level", "warning", "--policy", "kv_aware"),
        *("--kv-event-block-size", str(block), "--kv-event-model", model),
        *("--worker-urls", *(backend["url"] for backend in backends)),
    ]
    for backend in backends:
        command += ["--kv-event-source", f"{backend['url']}={backend['events']}"]
        command += ["--kv-event-replay-source", f"{backend['url']}={backend['replay']}"]
    program = starter.start("vllm-router-kv-aware", command)
    url = f"http://127.0.0.1:{port}"
    for _ in program.polls(60):
        if answers(f"{url}/v1/models"):
            return program, url
    raise RuntimeError(f"vllm-router is not ready: {program.tail()}")


def python(requirement: str) -> str:
    """The interpreter of an environment that holds ``requirement``; it is made when missing."""
    home = ENVIRONMENT / requirement.replace("==", "-")
    interpreter = str(home / "bin" / "python")
    if not (home / ".installed").exists():
        print(f"   installing {requirement} ...", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
        install = [interpreter, "-m", "pip", "install", "-q", requirement]
        subprocess.run(install, check=True, stderr=subprocess.DEVNULL)
        (home / ".installed").touch()
    return interpreter


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
