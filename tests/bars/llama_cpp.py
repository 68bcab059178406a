"""Bar 6.3: two llama.cpp servers, which tell nothing of their caches: placed by the text alone.

They need an environment of their own, made by hand once (some minutes of compiling; where the machine
shows AMX and faults in it, with CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON"):
  python3 -m venv .run/peers/llama-cpp &&
  .run/peers/llama-cpp/bin/pip install 'llama-cpp-python[server]==0.3.36'
"""

import json
import sys
from statistics import mean

from warmfleet_router.local import demo

from tests.bars.conversations import Shape, talks
from tests.bars.fleet import base, get
from tests.bars.peers import ENVIRONMENT, answers, free_port
from tests.bars.programs import LOGS, Program, Starter, programs
from tests.bars.rows import Row

PYTHON = ENVIRONMENT / "llama-cpp" / "bin" / "python"
MODEL = "smollm2"
SHAPE = Shape(talks=6, turns=4, system_words=150, turn_words=80, max_tokens=8, at_once=2, pause_s=0.0)
START_S = 120.0


def main() -> list[Row]:
    if not PYTHON.exists():
        print("   skipped: llama-cpp-python is not installed; see llama_cpp.py", flush=True)
        return []
    with programs() as starter:
        urls = [server(starter, n) for n in range(2)]
        ttfts = {}
        for seed, policy in enumerate(("round_robin", "cheapest")):
            program, url = router(starter, policy, urls)
            got = talks(url, MODEL, SHAPE, seed)
            ttfts[policy] = mean(answer.ttft_s for answer in got)
            workers = json.loads(get(f"{url}/admin/workers"))["workers"]
            program.stop()
    presence = {worker["presence"] for worker in workers}
    ratio = ttfts["cheapest"] / ttfts["round_robin"]
    figure = f"{ratio:.2f}x of {ttfts['round_robin']:.2f} s"
    return [
        Row(
            "6.3", "two llama.cpp servers: presence", ", ".join(presence), "guessed", presence == {"guessed"}
        ),
        Row("6.3", "two llama.cpp servers: TTFT mean, by text over round robin", figure, "< 1x", ratio < 1),
    ]


def server(starter: Starter, number: int) -> str:
    """Its base URL. It serves one request at a time, and a new one does not end the one under way."""
    port = free_port()
    command = [
        *(str(PYTHON), "-m", "llama_cpp.server", "--model", str(demo.weights()), "--model_alias", MODEL),
        *("--host", "127.0.0.1", "--port", str(port), "--n_ctx", "4096", "--n_threads", "1"),
        *("--cache", "true", "--interrupt_requests", "false"),
    ]
    program = starter.start(f"llama-cpp-{number}", command)
    url = f"http://127.0.0.1:{port}"
    for _ in program.polls(START_S):
        if answers(f"{url}/v1/models"):
            return url
    raise RuntimeError(f"llama.cpp is not ready: {program.tail()}")


def router(starter: Starter, policy: str, urls: list[str]) -> tuple[Program, str]:
    config = LOGS / f"llama-cpp-{policy}.toml"
    config.write_text("\n".join(f'[[backends]]\nurl = "{url}"' for url in urls))
    settings = ["http=127.0.0.1:0", "listen=127.0.0.1:0", f"routing.policy={policy}"]
    flags = [part for setting in settings for part in ("--set", setting)]
    command = [sys.executable, "-m", "warmfleet_router", "--config", str(config), *flags]
    program = starter.start(f"llama-cpp-{policy}", command)
    url = base(program.ready()["http"])
    for _ in program.polls(30):
        known = json.loads(get(f"{url}/v1/models"))["data"]
        if known and json.loads(get(f"{url}/admin/workers"))["fleet"]["healthy"] == len(urls):
            return program, url
    raise RuntimeError(f"the servers did not join: {program.tail()}")
