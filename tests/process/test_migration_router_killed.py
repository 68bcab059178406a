"""SIGKILL of the router in the middle of a migration that it ordered, with real processes.

A gateway of its own answers all the same. One that dies with its router leaves requests behind: they end, and
every pin with them.
"""

import asyncio
import contextlib
import json
import re
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from warmfleet_proto.channel import connect
from warmfleet_proto.grant import source_key
from warmfleet_proto.limits import LEASE_TTL_S, REATTACH_S
from warmfleet_proto.worker_pb2_grpc import WorkerStub

from tests.model import demo_model_path
from tests.process.exchange import FLEET_KEY
from tests.process.gateway import Stream
from tests.process.programs import ANY, VOCAB_SIZE, Program, answers, get, program, until

PREFIX = (
    "You know every river and every bridge of Europe, and you tell of them at length. " * 40
)  # 800 tokens
PREFILL_TOKEN_S = 4e-3
PINNED = 'blocks{state="pinned"}'
BYTES_PER_S = 2000.0  # a prefix is 6.4 KB: as slow as computing it, and longer than it takes to see and kill


@contextlib.contextmanager
def fleet(logs: Path, own_gateway: bool) -> Iterator[tuple[Program, Program, dict[str, Program]]]:
    """Router, gateway (perhaps in the router) and two workers that pull from each other."""
    (logs / "fleet.key").write_text(FLEET_KEY.hex())
    model = str(demo_model_path())
    with contextlib.ExitStack() as stack:
        workers = {}
        for name in "ab":
            (logs / f"{name}.key").write_text(source_key(FLEET_KEY, name).hex())
            workers[name] = stack.enter_context(giving(logs, name))
        places = [each.said["grpc"] for each in workers.values()]
        settings: dict[str, Any] = {"workers": places, "fleet_key_file": str(logs / "fleet.key")}
        router = stack.enter_context(program(logs, "router", http=ANY, listen=ANY, model=model, **settings))
        gateway = router
        if own_gateway:
            address = router.said["grpc"]
            gateway = stack.enter_context(program(logs, "gateway", http=ANY, model=model, router=address))
        until(lambda: answers(f"http://{gateway.said['http']}/health"))
        admin = f"http://{router.said['http']}/admin/workers"
        until(lambda: [w["state"] for w in json.loads(get(admin))["workers"]] == ["healthy"] * 2)
        yield router, gateway, workers


def giving(logs: Path, name: str) -> contextlib.AbstractContextManager[Program]:
    timing = {"sim__timing__prefill_token_s": PREFILL_TOKEN_S, "sim__vocab_size": VOCAB_SIZE}
    transfer = {
        "transfer__key_file": str(logs / f"{name}.key"),
        "transfer__bytes_per_s": BYTES_PER_S,
        "transfer__transports": ["tcp"],
    }
    return program(
        logs, "worker", name=name, engine="sim", listen=ANY, http=ANY, drain_s=0, **timing, **transfer
    )


def ask(gateway: Program, question: str) -> str:
    """Who answered. Raises OSError when nobody did."""
    messages = [{"role": "system", "content": PREFIX}, {"role": "user", "content": question}]
    body = json.dumps({"model": "sim", "max_tokens": 2, "messages": messages}).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"http://{gateway.said['http']}/v1/chat/completions", body, headers)
    with urllib.request.urlopen(request, timeout=60) as response:
        assert json.loads(response.read())["choices"][0]["message"]["content"]
        return str(response.headers["X-Warmfleet-Worker"])


def metric(worker: Program, name: str) -> float:
    text = get(f"http://{worker.said['http']}/metrics").decode()
    found = re.search(rf"^warmfleet_worker_{re.escape(name)} (\S+)$", text, re.MULTILINE)
    assert found is not None, name
    return float(found[1])


@asynccontextmanager
async def busy(worker: Program, router: Program, name: str) -> AsyncIterator[None]:
    """With prompts of somebody else's, of which its router has heard."""
    async with connect(worker.said["grpc"]) as channel:
        other = Stream(WorkerStub(channel), "other", {})  # type: ignore[no-untyped-call]
        await other.open()
        for handle in range(1, 5):
            await other.submit(handle, range(handle * 3000, handle * 3000 + 2500), 1)
        await asyncio.to_thread(until, lambda: heard(router, name) > 1)
        yield
        for handle in range(1, 5):
            await other.send(cancel={"handle": handle})
            await other.end(handle)
        await other.close()


def heard(router: Program, name: str) -> int:
    shown = json.loads(get(f"http://{router.said['http']}/admin/workers"))["workers"]
    return sum(w["running"] + w["waiting"] for w in shown if w["worker"] == name)


@pytest.mark.parametrize("own_gateway", [True, False], ids=["its gateway lives", "its gateway dies"])
async def test_router_killed_while_blocks_are_pulled(tmp_path: Path, own_gateway: bool) -> None:
    with fleet(tmp_path, own_gateway) as (router, gateway, workers):
        maker = await asyncio.to_thread(ask, gateway, "Which one crosses the Rhine?")
        target = next(name for name in workers if name != maker)
        async with busy(workers[maker], router, maker):
            asked = asyncio.create_task(asyncio.to_thread(ask, gateway, "And which the Danube?"))
            await asyncio.to_thread(until, lambda: metric(workers[maker], "leases") > 0)
            router.kill()
            if own_gateway:
                assert await asked == target
            else:
                with pytest.raises(OSError):
                    await asked
        within_s = LEASE_TTL_S + REATTACH_S + 30
        for worker in workers.values():
            await asyncio.to_thread(until, lambda w=worker: not metric(w, PINNED), within_s)
            assert not metric(worker, "leases")
            assert worker.alive
