"""A router and its workers as real processes on free ports, for as long as a ``with`` lasts."""

import json
import re
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from warmfleet_router.local.launch import write_keys

from tests.bars import load
from tests.bars.programs import Program, Starter, programs

VOCAB_SIZE = 49_152  # of the demo model's tokenizer, which the gateway uses for sim workers as well


class Counts(NamedTuple):
    """What one worker says it has done, in tokens."""

    prompt: int
    cached: int
    completion: int


@dataclass(slots=True)
class Fleet:
    url: str  # of the gateway
    faces: list[str]  # base URLs of the workers' own HTTP
    model: str
    router: Program
    workers: list[Program]
    starter: Starter
    places: list[str]  # HOST:PORT of the workers' gRPC

    def admin(self) -> dict[str, Any]:
        shown: dict[str, Any] = json.loads(get(f"{self.url}/admin/workers"))
        return shown

    def models(self) -> list[str]:
        return [model["id"] for model in json.loads(get(f"{self.url}/v1/models"))["data"]]

    def counts(self) -> list[Counts]:
        return [counts(get(f"{face}/metrics").decode()) for face in self.faces]


@contextmanager
def sim_fleet(
    workers: int, *, policy: str = "cheapest", instant: bool = False, total_blocks: int = 4096
) -> Iterator[Fleet]:
    """Workers without a model; unless ``instant`` they take the times of ``load.TIMING``."""
    timing = [f"sim.timing.{key}={value}" for key, value in load.TIMING.items()]
    settings = ["engine=sim", f"sim.vocab_size={VOCAB_SIZE}", f"total_blocks={total_blocks}"]
    settings += ["sim.instant=true"] if instant else timing
    with fleet([settings] * workers, policy) as running:
        yield running


@contextmanager
def torch_fleet(workers: int, *, policy: str = "cheapest") -> Iterator[Fleet]:
    """Workers that serve the demo model."""
    from warmfleet_router.local import demo

    with fleet([["engine=torch", f"model={demo.weights()}"]] * workers, policy) as running:
        yield running


@contextmanager
def giving_fleet(workers: int, *settings: str) -> Iterator[Fleet]:
    """Workers that serve the demo model in float32, one thread each, and give blocks to each other."""
    from warmfleet_router.local import demo

    with tempfile.TemporaryDirectory() as folder:
        names = [f"w{n}" for n in range(workers)]
        keys = write_keys(Path(folder), names)
        shared = ["engine=torch", f"model={demo.weights()}", "dtype=float32", "threads=1", *settings]
        each = [[*shared, f"transfer.key_file={keys[name]}"] for name in names]
        with fleet(each, "cheapest", f"fleet_key_file={keys['']}") as running:
            yield running


@contextmanager
def fleet(workers: Sequence[Sequence[str]], policy: str, *more: str) -> Iterator[Fleet]:
    """One worker for each list of its settings, and a router that takes ``policy`` and ``more`` settings."""
    with programs() as starter:
        started = [worker(starter, f"w{n}", each) for n, each in enumerate(workers)]
        said = [program.ready() for program in started]
        router = start(
            starter,
            "router",
            "warmfleet_router",
            [*router_settings(policy, [s["grpc"] for s in said]), *more],
        )
        url = base(router.ready()["http"])
        places = [str(s["grpc"]) for s in said]
        running = Fleet(url, [base(s["http"]) for s in said], "", router, started, starter, places)
        for _ in router.polls(60):
            if running.admin()["fleet"]["healthy"] == len(workers) and running.models():
                break
        else:
            raise RuntimeError(f"the workers did not join: {router.tail()}")
        running.model = running.models()[0]
        yield running


def worker(starter: Starter, name: str, settings: Sequence[str]) -> Program:
    return start(starter, name, "warmfleet_worker", [f"name={name}", "drain_s=0", *settings])


def router_settings(policy: str, addresses: Sequence[str]) -> list[str]:
    places = ["http=127.0.0.1:0", "listen=127.0.0.1:0", f"workers={json.dumps(list(addresses))}"]
    return [*places, f"routing.policy={policy}"]


def start(starter: Starter, name: str, module: str, settings: Sequence[str]) -> Program:
    flags = [part for setting in settings for part in ("--set", setting)]
    return starter.start(name, [sys.executable, "-m", module, *flags])


def base(address: str) -> str:
    return address if address.startswith("http") else f"http://{address}"


def get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=10) as response:
        answer: bytes = response.read()
    return answer


def counts(metrics: str) -> Counts:
    def total(name: str) -> int:
        found = re.search(rf"^warmfleet_worker_{name}_total (\S+)$", metrics, re.MULTILINE)
        return int(float(found[1])) if found else 0

    return Counts(total("prompt_tokens"), total("cached_tokens"), total("completion_tokens"))
