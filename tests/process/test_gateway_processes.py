"""Several gateway processes behind one address: each takes connections, none is missed for long."""

import json
import os
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.model import demo_model_path
from tests.process.programs import ANY, VOCAB_SIZE, Program, program


@contextmanager
def fleet(logs: Path, drain_s: float = 1.0, **sim: Any) -> Iterator[Program]:
    model = str(demo_model_path())
    sim = {"sim__vocab_size": VOCAB_SIZE} | (sim or {"sim__instant": True})
    with (
        program(logs, "worker", name="w0", engine="sim", listen=ANY, http=ANY, **sim) as worker,
        program(logs, "router", http=ANY, listen=ANY, model=model, workers=[worker.said["grpc"]]) as router,
        program(
            logs,
            "gateway",
            http=ANY,
            metrics=ANY,
            model=model,
            router=router.said["grpc"],
            processes=2,
            limits__drain_s=drain_s,
        ) as gateway,
    ):
        yield gateway


def test_they_share_an_address_and_the_dead_are_started_again(tmp_path: Path) -> None:
    with fleet(tmp_path) as gateway:
        url = f"http://{gateway.said['http']}"
        until(lambda: all(fetch(f"{url}/health") for _ in range(20)))
        for _ in range(40):
            assert ask(url)
        counts = [served(f"http://{metrics}") for metrics in gateway.said["metrics"]]
        assert sum(counts) == 40
        assert min(counts) > 0
        os.kill(gateway.said["pids"][0], signal.SIGKILL)
        until(lambda: all(ask(url) for _ in range(5)))
        gateway.process.terminate()
        assert gateway.process.wait(60) == 0
        assert fetch(f"{url}/health") is None
        ends = [line for line in gateway.log.read_text().splitlines() if "gateway process ended" in line]
        assert [(json.loads(end)["pid"], json.loads(end)["status"]) for end in ends] == [
            (gateway.said["pids"][0], -signal.SIGKILL)
        ]


def test_a_second_signal_ends_them_at_once(tmp_path: Path) -> None:
    """What is open would go on for minutes, and may."""
    with fleet(tmp_path, drain_s=300.0, sim__timing__step_s=0.05) as gateway:
        url = f"http://{gateway.said['http']}"
        until(lambda: fetch(f"{url}/health") is not None)
        body = json.dumps({"model": "sim", "prompt": "hello", "max_tokens": 50_000, "stream": True}).encode()
        request = urllib.request.Request(f"{url}/v1/completions", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as response:
            assert response.readline()
            gateway.process.terminate()
            until(lambda: fetch(f"{url}/health") is None)  # nobody listens any more
            assert gateway.alive
            gateway.process.terminate()
            assert gateway.process.wait(60) == 0


def ask(url: str) -> bool:
    """On a connection of its own; False when that is refused or broken."""
    models = json.loads(fetch(f"{url}/v1/models") or b'{"data":[]}')["data"]
    if not models:
        return False
    body = json.dumps({"model": models[0]["id"], "prompt": "hello", "max_tokens": 2}).encode()
    return fetch(f"{url}/v1/completions", body) is not None


def fetch(url: str, body: bytes | None = None) -> bytes | None:
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            answer: bytes = response.read()
            return answer
    except (urllib.error.URLError, ConnectionError):
        return None


def served(url: str) -> int:
    text = (fetch(f"{url}/metrics") or b"").decode()
    lines = [line for line in text.splitlines() if line.startswith("warmfleet_router_requests_total{")]
    return int(sum(float(line.rpartition(" ")[2]) for line in lines))


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)
