"""Workers that appear in a file or in DNS are taken in, those that vanish get nothing more; no restart."""

import asyncio
import hashlib
import os
import threading
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from warmfleet_proto.settings import ConfigError
from warmfleet_router.discovery import Name, file, names
from warmfleet_router.gateway import service
from warmfleet_router.servers.backend import Backend
from warmfleet_router.servers.watcher import ServerWatcher
from warmfleet_worker.engine.base import Finish, Plan

from tests.process.fleet import sim_worker
from tests.process.gateways import SIM, healthy, one_tokenizer, router
from tests.process.name_server import name_server

__all__ = ["one_tokenizer"]
NOBODY = "127.0.0.1:9"  # the discard port: refused at once


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file, "LOOK_S", 0.02)
    monkeypatch.setattr(names, "LEAST_S", 0.02)
    monkeypatch.setattr("warmfleet_router.discovery.discoverer.RETRY_S", 0.02)


def write(path: Path, text: str) -> None:
    """In one go, as whoever writes such files should."""
    fresh = path.with_suffix(".fresh")
    fresh.write_text(text)
    os.replace(fresh, path)


def listed(*workers: str) -> str:
    return f"workers = {list(workers)}\n"


async def admin(base: str) -> dict[str, Any]:
    async with aiohttp.ClientSession() as session, session.get(f"{base}/admin/workers") as response:
        shown: dict[str, Any] = await response.json()
        return shown


async def until(base: str, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    async with asyncio.timeout(60):
        while not condition(shown := await admin(base)):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    return shown


def states(shown: dict[str, Any]) -> dict[str, str]:
    return {worker["worker"]: worker["state"] for worker in shown["workers"]}


async def chat(base: str, text: str = "x", key: str = "", **more: Any) -> aiohttp.ClientResponse:
    body = {"model": "sim", "messages": [{"role": "user", "content": text}], "max_tokens": 4, **more}
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with aiohttp.ClientSession(headers=headers) as session:
        response = await session.post(f"{base}/v1/chat/completions", json=body)
        await response.read()
        return response


async def test_workers_of_a_file_come_and_go_and_a_broken_file_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "fleet.toml"
    async with sim_worker(name="a", sim=SIM) as a, sim_worker(name="b", sim=SIM) as b:
        path.write_text(listed(a.grpc_address))
        async with router([], discovery={"file": str(path)}) as addresses:
            base = f"http://{addresses['http']}"
            await healthy(base)
            assert states(await admin(base)) == {"a": "healthy"}, (
                "ready means: heard of all that can be reached"
            )
            write(path, listed(a.grpc_address, b.grpc_address))
            await until(base, lambda shown: states(shown) == {"a": "healthy", "b": "healthy"})

            write(path, "workers = [")
            shown = await until(base, lambda shown: not shown["discovery"][0]["ok"])
            (source,) = shown["discovery"]
            assert (source["source"], source["found"]) == (f"file {path}", 2)
            assert "discovery.file" in source["why"]
            assert "not TOML" in source["why"]
            assert states(shown) == {"a": "healthy", "b": "healthy"}
            async with aiohttp.ClientSession() as session, session.get(f"{base}/metrics") as response:
                metrics = await response.text()
            assert f'warmfleet_router_discovery_up_ratio{{source="file {path}"}} 0.0' in metrics
            path.unlink()
            await until(base, lambda shown: "No such file" in shown["discovery"][0]["why"])

            write(path, listed(b.grpc_address))
            await until(base, lambda shown: shown["discovery"][0]["ok"] and states(shown) == {"b": "healthy"})
            for number in range(4):
                assert (await chat(base, str(number))).headers["X-Warmfleet-Worker"] == "b"


async def test_what_runs_on_a_worker_that_vanishes_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "fleet.toml"
    async with sim_worker(name="a", sim=SIM) as a, sim_worker(name="b", sim=SIM) as b:
        go_on, launch = threading.Event(), a.runner.engine.launch

        def waiting(plan: Plan) -> Finish:
            go_on.wait(60)
            return launch(plan)

        a.runner.engine.launch = waiting  # type: ignore[method-assign]
        path.write_text(listed(a.grpc_address))
        async with router([], discovery={"file": str(path)}) as addresses:
            base = f"http://{addresses['http']}"
            await healthy(base)
            answer = asyncio.create_task(chat(base, max_tokens=40))
            await until(base, lambda shown: shown["fleet"]["bookings"] == 1)
            write(path, listed(b.grpc_address))
            await until(base, lambda shown: states(shown) == {"b": "healthy"})
            assert not answer.done()
            go_on.set()
            response = await answer
            assert response.headers["X-Warmfleet-Worker"] == "a"
            assert (await response.json())["usage"]["completion_tokens"] == 40
            shown = await until(base, lambda shown: shown["fleet"]["bookings"] == 0)
            assert states(shown) == {"b": "healthy"}
            write(path, listed(a.grpc_address, b.grpc_address))
            await until(base, lambda shown: states(shown) == {"a": "healthy", "b": "healthy"})


async def test_a_server_is_sent_its_key_for_as_long_as_it_is_sent_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, heard, watch = tmp_path / "fleet.toml", [], ServerWatcher.watch
    base, gone = "", asyncio.Event()

    async def models(_: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "sim"}]})

    async def answer(request: web.Request) -> web.Response:
        heard.append(request.headers.get("Authorization"))
        return web.json_response({"choices": []})

    async def later(self: ServerWatcher, backends: Collection[Backend]) -> None:
        """Letting the others go has taken its time."""
        if base and not backends:
            assert (await chat(base)).status == 200
            gone.set()
        await watch(self, backends)

    monkeypatch.setattr(ServerWatcher, "watch", later)
    app = web.Application()
    app.add_routes([web.get("/v1/models", models), web.post("/v1/chat/completions", answer)])
    async with TestServer(app) as server:
        path.write_text(f'backends = [{{url = "{server.make_url("")}", key = "its-own"}}]')
        async with router([], discovery={"file": str(path)}) as addresses:
            base = f"http://{addresses['http']}"
            await healthy(base)
            write(path, "backends = []\n")
            await asyncio.wait_for(gone.wait(), 60)
    assert heard == ["Bearer its-own"]


class Server:
    """One of vLLM's kind, that serves ``sim``."""

    def __init__(self) -> None:
        self.heard: list[dict[str, Any]] = []
        app = web.Application()
        app.add_routes([web.get("/v1/models", self._models), web.post("/v1/chat/completions", self._answer)])
        self.serving = TestServer(app)

    @property
    def listed(self) -> str:
        return f'{{url = "{self.serving.make_url("")}", kind = "vllm"}}'

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "sim"}]})

    async def _answer(self, request: web.Request) -> web.Response:
        self.heard.append(await request.json())
        return web.json_response({"choices": []})


TENANT = {"name": "a", "salt": "a", "key_sha256": [hashlib.sha256(b"its-key").hexdigest()]}


async def test_a_server_that_has_just_joined_is_told_whose_a_request_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The router places on it at once, its gateway looks who is there every two seconds."""
    monkeypatch.setattr(service, "BOOKING_HEARTBEAT_S", 3600.0)
    path, first, second = tmp_path / "fleet.toml", Server(), Server()
    async with first.serving, second.serving:
        path.write_text(f"backends = [{first.listed}]")
        given = {"discovery": {"file": str(path)}, "tenants": [TENANT], "routing": {"policy": "round_robin"}}
        async with router([], **given) as addresses:
            base = f"http://{addresses['http']}"
            await healthy(base)
            write(path, f"backends = [{first.listed}, {second.listed}]")
            await until(base, lambda shown: list(states(shown).values()) == ["healthy"] * 2)
            for number in range(4):
                assert (await chat(base, str(number), key="its-key")).status == 200
    assert second.heard
    assert {body["cache_salt"] for body in first.heard + second.heard} == {first.heard[0]["cache_salt"]}


@asynccontextmanager
async def joined(tmp_path: Path, own_first: bool) -> AsyncIterator[tuple[str, Server]]:
    """Base URL of a gateway over our own worker and a server, one of which has just joined the other."""
    path, server = tmp_path / "fleet.toml", Server()
    async with sim_worker(name="a", sim=SIM) as worker, server.serving:
        own, other = listed(worker.grpc_address), f"backends = [{server.listed}]"
        path.write_text(own if own_first else other)
        given = {"discovery": {"file": str(path)}, "routing": {"policy": "round_robin"}}
        async with router([], **given) as addresses:
            base = f"http://{addresses['http']}"
            await healthy(base)
            write(path, own + other)
            await until(base, lambda shown: list(states(shown).values()) == ["healthy"] * 2)
            yield base, server
            assert [worker["dropped"] for worker in (await admin(base))["workers"]] == [0, 0]


async def test_a_server_that_has_just_joined_our_own_worker_is_no_worker_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was made for our own workers goes to those, what comes after that to either kind."""
    monkeypatch.setattr(service, "BOOKING_HEARTBEAT_S", 3600.0)
    async with joined(tmp_path, own_first=True) as (base, server), asyncio.timeout(60):
        while not server.heard:
            assert (await chat(base)).status == 200


async def test_our_own_worker_that_has_just_joined_a_server_is_no_server_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "BOOKING_HEARTBEAT_S", 3600.0)
    async with joined(tmp_path, own_first=False) as (base, _):
        for number in range(4):
            assert (await chat(base, str(number))).status == 200


async def test_workers_of_a_dns_name_come_and_go() -> None:
    async with (
        name_server() as server,
        sim_worker(name="a", sim=SIM) as a,
        sim_worker(name="b", sim=SIM) as b,
    ):
        ports = [worker.grpc_address.rpartition(":")[2] for worker in (a, b)]
        workers = ("_warmfleet._tcp.fleet.test", "SRV")
        discovery = {"dns": [{"name": workers[0]}], "dns_s": 0.05, "dns_server": server.address}
        async with router([], discovery=discovery) as addresses:
            base = f"http://{addresses['http']}"
            shown = await until(base, lambda shown: shown["discovery"][0]["failures"] > 1)
            assert "does not exist" in shown["discovery"][0]["why"], "a name may get its records later"
            server.records[workers] = [f"0 0 {ports[0]} localhost."]
            await until(base, lambda shown: states(shown) == {"a": "healthy"})
            server.records[workers].append(f"0 0 {ports[1]} localhost.")
            await until(base, lambda shown: states(shown) == {"a": "healthy", "b": "healthy"})

            server.broken = True
            shown = await until(base, lambda shown: not shown["discovery"][0]["ok"])
            assert states(shown) == {"a": "healthy", "b": "healthy"}
            server.broken = False
            server.records[workers] = []
            shown = await until(base, lambda shown: "does not contain" in shown["discovery"][0]["why"])
            assert states(shown) == {"a": "healthy", "b": "healthy"}, "nobody at all is a broken answer"
            server.records[workers] = [f"0 0 {ports[1]} localhost."]
            await until(base, lambda shown: states(shown) == {"b": "healthy"})


async def test_records_that_name_nobody_change_nothing() -> None:
    async with name_server() as server:
        source = names.NameSource(Name(name="gone.test"), 1.0, server.address)
        server.records["gone.test", "SRV"] = ["0 0 0 ."]
        with pytest.raises(ConfigError, match="name nobody"):
            await source.look()
        server.records["gone.test", "SRV"].append("0 0 5 a.test.")
        assert (await source.look())[0].workers == ("a.test:5",)


async def test_a_name_with_a_port_has_addresses() -> None:
    async with name_server() as server, sim_worker(name="a", sim=SIM) as a:
        server.records["workers.test", "A"] = ["127.0.0.1"]
        name = {"name": "workers.test", "port": int(a.grpc_address.rpartition(":")[2])}
        discovery = {"dns": [name], "dns_server": server.address}
        async with router([], discovery=discovery) as addresses:
            await healthy(f"http://{addresses['http']}")


async def test_servers_that_fail_for_a_kind_of_address_that_there_is_none_of_are_put_up_with() -> None:
    """Once there has been one, a failure hides it: whoever is known stays."""
    async with name_server() as server:
        source = names.NameSource(Name(name="fleet.test", port=7), 1.0, server.address)
        server.broken = frozenset(("AAAA",))
        server.records["fleet.test", "A"] = ["127.0.0.1", "127.0.0.2"]
        assert (await source.look())[0].workers == ("127.0.0.1:7", "127.0.0.2:7")
        server.broken = False
        server.records["fleet.test", "AAAA"] = ["::1"]
        assert len((await source.look())[0].workers) == 3
        server.broken = frozenset(("AAAA",))
        with pytest.raises(ConfigError, match="dns fleet"):
            await source.look()
        server.broken = frozenset(("A",))
        with pytest.raises(ConfigError, match="dns fleet"):
            await source.look()


async def test_a_router_is_not_ready_before_it_knows_what_its_workers_hold() -> None:
    """A replica that begins knows at once where a prefix is, and waits for nobody who cannot be reached."""
    async with sim_worker(name="a", sim=SIM) as a, sim_worker(name="b", sim=SIM) as b:
        text = "a prefix of many words " * 50
        workers = [a.grpc_address, b.grpc_address, NOBODY]
        async with router(workers) as addresses:
            await healthy(f"http://{addresses['http']}")
            first = await chat(f"http://{addresses['http']}", text)
        async with router(workers) as addresses:
            base = f"http://{addresses['http']}"
            held = {worker["worker"]: worker["held_blocks"] for worker in (await admin(base))["workers"]}
            assert held[first.headers["X-Warmfleet-Worker"]] > 10
            again = await chat(base, text)
            assert again.headers["X-Warmfleet-Worker"] == first.headers["X-Warmfleet-Worker"]
            assert (await again.json())["usage"]["prompt_tokens_details"]["cached_tokens"] > 200
