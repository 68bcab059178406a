"""A router, gateways and sim workers as processes of their own, for tests that kill or look from outside."""

import contextlib
import json
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tests.model import demo_model_path

VOCAB_SIZE = 49152  # of the demo model's tokenizer
ANY = "127.0.0.1:0"
WARMFLEET = ("warmfleet_router.cli",)


@dataclass
class Program:
    process: "subprocess.Popen[str]"
    log: Path  # its stderr

    @cached_property
    def said(self) -> dict[str, Any]:
        """Its ready line, once it is ready."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.log.read_text()
        said: dict[str, Any] = json.loads(line)
        return said

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    @property
    def alive(self) -> bool:
        return self.process.poll() is None


@contextlib.contextmanager
def program(
    logs: Path, command: str, config: Path | None = None, module: Sequence[str] = WARMFLEET, **settings: Any
) -> Iterator[Program]:
    """``warmfleet COMMAND``, starting; ended on the way out. ``module``: run it, with arguments."""
    pairs = [f"{key.replace('__', '.')}={json.dumps(value)}" for key, value in settings.items()]
    flags = [part for pair in pairs for part in ("--set", pair)]
    if config is not None:
        flags += ["--config", str(config)]
    log = logs / f"{command}-{len(list(logs.iterdir()))}.log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", *module, command, *flags],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    made = Program(process, log)
    try:
        yield made
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            made.kill()
        assert process.stdout is not None
        process.stdout.close()


@dataclass
class Processes:
    url: str  # of the gateway
    router: Program
    workers: list[Program]

    def admin(self) -> list[dict[str, Any]]:
        """Every worker as the admin page shows it."""
        shown = get(f"http://{self.router.said['http']}/admin/workers")
        workers: list[dict[str, Any]] = json.loads(shown)["workers"]
        return workers


@contextlib.contextmanager
def processes(logs: Path, workers: int = 2, **sim: Any) -> Iterator[Processes]:
    """Healthy ``workers`` with the sim engine, and their router; ``sim`` as in a worker's configuration."""
    with contextlib.ExitStack() as stack:
        started = [stack.enter_context(worker(logs, f"w{n}", ANY, **sim)) for n in range(workers)]
        places = [each.said["grpc"] for each in started]
        main = stack.enter_context(
            program(logs, "router", http=ANY, listen=ANY, model=str(demo_model_path()), workers=places)
        )
        running = Processes(f"http://{main.said['http']}", main, started)
        until(lambda: [w["state"] for w in running.admin()] == ["healthy"] * workers)
        until(lambda: answers(f"{running.url}/health"))
        yield running


def worker(logs: Path, name: str, listen: str, **sim: Any) -> contextlib.AbstractContextManager[Program]:
    settings = {f"sim__{key}": value for key, value in ({"vocab_size": VOCAB_SIZE} | sim).items()}
    return program(logs, "worker", name=name, engine="sim", listen=listen, http=ANY, drain_s=0, **settings)


def until(condition: Any, within_s: float = 60.0) -> None:
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.02)


def answers(url: str) -> bool:
    try:
        get(url)
    except urllib.error.HTTPError as error:
        error.close()
        return False
    return True


def get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=60) as response:
        body: bytes = response.read()
        return body


def metric(worker: Program, name: str) -> float:
    """As its page of metrics names it, with the labels; without what all of its names begin with."""
    text = get(f"http://{worker.said['http']}/metrics").decode()
    found = re.search(rf"^warmfleet_worker_{re.escape(name)} (\S+)$", text, re.MULTILINE)
    assert found is not None, name
    return float(found[1])
