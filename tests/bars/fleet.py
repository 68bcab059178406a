"""A router and its workers as real processes on free ports, for as long as a ``with`` lasts."""

import json
import re
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from warmfleet_router.local.launch import write_keys

from tests.bars import load
from tests.bars.programs import Program, Starter, programs

VOCAB_SIZE = 49_152  # of the demo model's tokenizer, which the gateway uses for sim workers as well
SIM_TOKEN_BYTES = 8  # of a sim worker's KV


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
    routers: list[str]  # base URLs of each router's own gateway

    def admin(self, router: int = 0) -> dict[str, Any]:
        shown: dict[str, Any] = json.loads(get(f"{self.routers[router]}/admin/workers"))
        return shown

    def healthy(self) -> int:
        """Workers, as that router sees it which sees fewest."""
        return min(int(self.admin(router)["fleet"]["healthy"]) for router in range(len(self.routers)))

    def models(self) -> list[str]:
        return [model["id"] for model in json.loads(get(f"{self.url}/v1/models"))["data"]]

    def counts(self) -> list[Counts]:
        return [counts(get(f"{face}/metrics").decode()) for face in self.faces]


@contextmanager
def sim_fleet(
    workers: int,
    *,
    policy: str = "cheapest",
    instant: bool = False,
    total_blocks: int = 4096,
    timing: Mapping[str, float] = load.TIMING,
    settings: Sequence[str] = (),
    routers: int = 0,
    link: float = 0.0,
) -> Iterator[Fleet]:
    """Workers without a model; unless ``instant`` they take the times of ``timing``. Each gives its peers the
    KV of ``link`` tokens a second; 0: nothing."""
    each = ["engine=sim", f"sim.vocab_size={VOCAB_SIZE}", f"total_blocks={total_blocks}", *settings]
    each += ["sim.instant=true"] if instant else [f"sim.timing.{k}={v}" for k, v in timing.items()]
    if link:
        each += ['transfer.transports=["tcp"]', f"transfer.bytes_per_s={link * SIM_TOKEN_BYTES}"]
    with tempfile.TemporaryDirectory() as folder:
        every, more = with_keys(Path(folder), [each] * workers) if link else ([each] * workers, [])
        with fleet(every, policy, *more, routers=routers) as running:
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
        each = ["engine=torch", f"model={demo.weights()}", "dtype=float32", "threads=1", *settings]
        every, more = with_keys(Path(folder), [each] * workers)
        with fleet(every, "cheapest", *more) as running:
            yield running


def with_keys(folder: Path, workers: Sequence[Sequence[str]]) -> tuple[list[list[str]], list[str]]:
    """The settings of workers that give each other blocks, and the router's, with new keys in ``folder``."""
    keys = write_keys(folder, [f"w{n}" for n in range(len(workers))])
    every = [[*each, f"transfer.key_file={keys[f'w{n}']}"] for n, each in enumerate(workers)]
    return every, [f"fleet_key_file={keys['']}"]


@contextmanager
def fleet(workers: Sequence[Sequence[str]], policy: str, *more: str, routers: int = 0) -> Iterator[Fleet]:
    """One worker for each list of its settings, and a router that takes ``policy`` and ``more`` settings; or
    so many ``routers``, with a gateway before them that knows them all."""
    with programs() as starter:
        started = [worker(starter, f"w{n}", each) for n, each in enumerate(workers)]
        said = [program.ready() for program in started]
        places = [str(s["grpc"]) for s in said]
        settings = [*router_settings(policy, places), *more]
        named = [f"router{n}" for n in range(routers)] or ["router"]
        deciding = [start(starter, name, "warmfleet_router", settings) for name in named]
        told = [router.ready() for router in deciding]
        own = [base(t["http"]) for t in told]
        url = gateway(starter, [t["grpc"] for t in told]) if routers else own[0]
        faces = [base(s["http"]) for s in said]
        running = Fleet(url, faces, "", deciding[0], started, starter, places, own)
        for _ in deciding[0].polls(60):
            if running.healthy() == len(workers) and running.models():
                break
        else:
            raise RuntimeError(f"the workers did not join: {deciding[0].tail()}")
        running.model = running.models()[0]
        yield running


def gateway(starter: Starter, routers: Sequence[str]) -> str:
    """The base URL of one that asks ``routers``, each HOST:PORT."""
    settings = [f"router={json.dumps(list(routers))}", "http=127.0.0.1:0"]
    return base(start(starter, "gateway", "warmfleet_router.cli", settings, "gateway").ready()["http"])


def worker(starter: Starter, name: str, settings: Sequence[str]) -> Program:
    return start(starter, name, "warmfleet_worker", [f"name={name}", "drain_s=0", *settings])


def router_settings(policy: str, addresses: Sequence[str]) -> list[str]:
    places = ["http=127.0.0.1:0", "listen=127.0.0.1:0", f"workers={json.dumps(list(addresses))}"]
    return [*places, f"routing.policy={policy}"]


def start(starter: Starter, name: str, module: str, settings: Sequence[str], *command: str) -> Program:
    flags = [part for setting in settings for part in ("--set", setting)]
    return starter.start(name, [sys.executable, "-m", module, *command, *flags])


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
