"""SIGKILL of the router at every step of a migration that it ordered, with real processes.

A gateway of its own answers all the same, out of what was pulled. One that dies with its router leaves
requests behind: they end, and every pin with them.
"""

import asyncio
import contextlib
import json
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from warmfleet_proto.channel import connect
from warmfleet_proto.grant import source_key
from warmfleet_proto.worker_pb2_grpc import WorkerStub

from tests.model import demo_model_path
from tests.process.deadly import STEPS
from tests.process.exchange import FLEET_KEY
from tests.process.gateway import Stream
from tests.process.programs import ANY, VOCAB_SIZE, Program, answers, get, metric, program, until

PREFIX = (
    "You know every river and every bridge of Europe, and you tell of them at length. " * 40
)  # 800 tokens
PREFILL_TOKEN_S = 1e-3
OTHERS_TOKENS = 2500  # of each prompt that keeps a worker busy: ten seconds in all
CHUNK_TOKENS = 256  # of one step: what is cancelled goes soon
DEATHS = [
    pytest.param(step, marks=() if step == "target transfer" else pytest.mark.nightly) for step in STEPS
]


class Site(NamedTuple):
    routers: list[Program]
    gateway: Program
    workers: dict[str, Program]


class Answer(NamedTuple):
    worker: str
    cached_tokens: int


@contextlib.contextmanager
def fleet(folder: Path, step: str, routers: int = 1, own_gateway: bool = True) -> Iterator[Site]:
    """In which whoever comes to the step kills the router: the only one, or the one that has come to it."""
    (folder / "fleet.key").write_text(FLEET_KEY.hex())
    module = ("tests.process.deadly", step, str(folder))
    rest = {"http": ANY, "model": str(demo_model_path())}
    with contextlib.ExitStack() as stack:
        workers = {name: stack.enter_context(giving(folder, name, module)) for name in "ab"}
        seen = {
            "workers": [each.said["grpc"] for each in workers.values()],
            "fleet_key_file": str(folder / "fleet.key"),
        }
        started = [
            stack.enter_context(program(folder, "router", None, module, listen=ANY, **seen, **rest))
            for _ in range(routers)
        ]
        gateway = started[0]
        if own_gateway:
            addresses = [router.said["grpc"] for router in started]
            gateway = stack.enter_context(program(folder, "gateway", router=addresses, **rest))
        until(lambda: answers(f"http://{gateway.said['http']}/health"))
        for router in started:
            until(lambda of=router: [w["state"] for w in shown(of)] == ["healthy"] * 2)
        if routers == 1:
            (folder / "victim").write_text(str(started[0].process.pid))
        yield Site(started, gateway, workers)


def giving(folder: Path, name: str, module: tuple[str, ...]) -> contextlib.AbstractContextManager[Program]:
    (folder / f"{name}.key").write_text(source_key(FLEET_KEY, name).hex())
    sim = {"sim__timing__prefill_token_s": PREFILL_TOKEN_S, "sim__vocab_size": VOCAB_SIZE}
    rest = {"engine": "sim", "listen": ANY, "http": ANY, "drain_s": 0, "chunk_tokens": CHUNK_TOKENS}
    key = str(folder / f"{name}.key")
    return program(folder, "worker", None, module, name=name, transfer__key_file=key, **rest, **sim)


def ask(gateway: Program, question: str, prefix: str = PREFIX) -> Answer:
    """Raises OSError when nobody answers."""
    messages = [{"role": "system", "content": prefix}, {"role": "user", "content": question}]
    body = json.dumps({"model": "sim", "max_tokens": 2, "messages": messages}).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"http://{gateway.said['http']}/v1/chat/completions", body, headers)
    with urllib.request.urlopen(request, timeout=60) as response:
        answer = json.loads(response.read())
        assert answer["choices"][0]["message"]["content"]
        cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
        return Answer(str(response.headers["X-Warmfleet-Worker"]), cached)


@asynccontextmanager
async def busy(worker: Program, name: str, routers: list[Program]) -> AsyncIterator[None]:
    """With prompts of somebody else's, of which the routers have heard."""
    async with connect(worker.said["grpc"]) as channel:
        other = Stream(WorkerStub(channel), "other", {})  # type: ignore[no-untyped-call]
        await other.open()
        for handle in range(1, 5):
            await other.submit(handle, range(handle * 3000, handle * 3000 + OTHERS_TOKENS), 1)
        for router in routers:
            await asyncio.to_thread(until, lambda of=router: heard(of, name) > 1)
        yield
        for handle in range(1, 5):
            await other.send(cancel={"handle": handle})
        for handle in range(1, 5):
            await other.end(handle)
        await other.close()


def shown(router: Program) -> list[dict[str, Any]]:
    workers: list[dict[str, Any]] = json.loads(get(f"http://{router.said['http']}/admin/workers"))["workers"]
    return workers


def heard(router: Program, name: str) -> int:
    return sum(w["running"] + w["waiting"] for w in shown(router) if w["worker"] == name)


async def balanced(workers: dict[str, Program]) -> None:
    for worker in workers.values():
        await asyncio.to_thread(until, lambda of=worker: not metric(of, 'blocks{state="pinned"}'))
        assert not metric(worker, "leases")
        assert worker.alive


@pytest.mark.parametrize("step", DEATHS)
async def test_its_gateway_answers(tmp_path: Path, step: str) -> None:
    with fleet(tmp_path, step, routers=2 if step == "router grant" else 1) as site:
        for number, router in enumerate(site.routers):
            # Who has measured nothing waits .08 s for a pull, in which none comes on a busy machine.
            await asyncio.to_thread(ask, router, "Which one?", f"{number} {PREFIX}")
        maker = (await asyncio.to_thread(ask, site.gateway, "Which one crosses the Rhine?")).worker
        async with busy(site.workers[maker], maker, site.routers):
            answer = await asyncio.to_thread(ask, site.gateway, "And which the Danube?")
        assert answer.worker == next(name for name in site.workers if name != maker)
        assert answer.cached_tokens > 0, "it was pulled, as far as it was not computed meanwhile"
        await asyncio.to_thread(until, lambda: not all(router.alive for router in site.routers))
        await balanced(site.workers)


@pytest.mark.nightly
async def test_what_dies_with_its_gateway_ends(tmp_path: Path) -> None:
    with fleet(tmp_path, "target transfer", own_gateway=False) as site:
        maker = (await asyncio.to_thread(ask, site.gateway, "Which one crosses the Rhine?")).worker
        async with busy(site.workers[maker], maker, site.routers):
            with pytest.raises(OSError):
                await asyncio.to_thread(ask, site.gateway, "And which the Danube?")
        assert not site.gateway.alive
        await balanced(site.workers)
