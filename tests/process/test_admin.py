"""The admin page over HTTP and in a real browser."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from warmfleet_proto import router_pb2 as pb
from warmfleet_proto.errors import BadRequest
from warmfleet_proto.transfer_pb2 import Pulled
from warmfleet_router.admin import Admin
from warmfleet_router.gateway.http import application
from warmfleet_router.view import HitRate

from tests.process import gateways
from tests.process.browser import needs_chromium, opened
from tests.process.gateways import one_tokenizer  # noqa: F401
from tests.unit.router.views import PLACEMENT, WORKER, FixedCore

EVIL = "<img src=x onerror=document.title='owned'>"
NONE = "\u2013"  # the page's word for a figure that is not known


@pytest.fixture
def core() -> FixedCore:
    made = FixedCore()
    made.shown.append(replace(WORKER, worker="w1", state="stuck", hit_minute=HitRate(0, 0)))
    of = pb.ProgressRequest(
        cached_tokens=64,
        pulled_tokens=64,
        pulled_bytes=3_000_000_000,
        wasted_bytes=9,
        pull_s=1.5,
        pull_failure="gone",
    )
    made.moves.note("w0", "w1", of, saved_s=0.25)
    ahead = Pulled(tokens=32, bytes=1_000_000_000, seconds=0.5)
    made.moves.brought("w0", "w1", ahead, leaving=True)
    made.moves.brought("w0", "w1", ahead, leaving=False)
    return made


@pytest.fixture
async def server(core: FixedCore) -> AsyncIterator[TestServer]:
    async def supposed(request: web.Request) -> list[pb.RouteRequest]:
        asked = await request.json()
        if "keys" not in asked:
            raise BadRequest("messages: expected some", "messages")
        return [pb.RouteRequest(model="tiny", keys=b"k" * 8, prompt_tokens=100)]

    app = application()
    app.add_routes(Admin(core, lambda: 100.0, supposed).routes())
    async with TestServer(app) as running:
        yield running


@pytest.fixture
async def client(server: TestServer) -> AsyncIterator[TestClient]:
    async with TestClient(server) as made:
        yield made


async def test_pulls_json(client: TestClient) -> None:
    shown = await (await client.get("/admin/pulls")).json()
    assert shown["pulls"] == [
        {
            "source": "w0",
            "target": "w1",
            "pulls": 3,
            "tokens": 128,
            "bytes": 5_000_000_000,
            "wasted_bytes": 9,
            "seconds": 2.5,
            "gb_per_s": 2.0,
            "saved_prefill_s": 0.25,
            "ahead_bytes": 2_000_000_000,
            "evacuated_bytes": 1_000_000_000,
            "failures": {"gone": 1},
        }
    ]


async def test_workers_json(client: TestClient) -> None:
    answer = await client.get("/admin/workers")
    shown = await answer.json()
    first, second = shown["workers"]
    assert first["hit_rate"] == {
        "minute": {"hit_tokens": 30, "asked_tokens": 120, "rate": 0.25},
        "total": {"hit_tokens": 600, "asked_tokens": 800, "rate": 0.75},
    }
    assert second["hit_rate"]["minute"]["rate"] is None  # asked for nothing is not a rate of 0
    wanted = {"held_blocks": 50, "total_blocks": 200, "running": 2, "waiting": 1, "share": 0.5}
    assert {key: first[key] for key in wanted} == wanted
    assert (first["ttft_p50_s"], first["ttft_p95_s"], first["state"]) == (0.02, None, "healthy")
    assert shown["fleet"]["healthy"] == 1
    assert shown["fleet"]["hit_rate"]["total"]["rate"] == 0.75
    assert shown["fleet"]["models"] == ["tiny"]


async def test_placements_json(client: TestClient, core: FixedCore) -> None:
    core.placed = [replace(PLACEMENT, booking=n) for n in range(150)]
    shown = (await (await client.get("/admin/placements")).json())["placements"]
    assert len(shown) == 100
    first = shown[0]
    assert (first["available_tokens"], first["expected_tokens"], first["delivered_tokens"]) == (80, 64, None)
    assert first["reason"] == "holds 64 of 100 prompt tokens"
    assert first["age_s"] == 10.0
    assert first["terms"] == [{"name": "wait", "seconds": 0.02}, {"name": "prefill", "seconds": 0.08}]


async def test_explain_finds_a_recent_placement(client: TestClient) -> None:
    for asked in ({"request_id": "r-1"}, {"booking": "f" * 16}):
        (found,) = (await (await client.get("/admin/explain", params=asked)).json())["explanations"]
        assert found["booking"] == "f" * 16  # 64 bits survive JSON
        first, second = found["candidates"]
        assert (first["chosen"], second["chosen"]) == (True, False)
        assert first["says"] == (
            "Holds 64 of the 100 prompt tokens. Costs 20.0 ms until the work before it is done and "
            "80.0 ms to compute the 36 tokens that are not there: 100.0 ms in all, the lowest price."
        )
        assert second["says"].endswith("1.50 s in all, 1.40 s above the lowest.")
        assert first["terms"][1]["says"] == "to compute the 36 tokens that are not there"
    missing = await client.get("/admin/explain", params={"request_id": "r-2"})
    assert missing.status == 404
    assert "request_id" in (await missing.json())["error"]["message"]
    assert (await client.get("/admin/explain")).status == 404
    assert (await client.get("/admin/explain", params={"booking": "xyz"})).status == 400


async def test_explain_a_request_that_is_not_made(client: TestClient) -> None:
    answer = await client.post("/admin/explain", json={"keys": ""})
    (found,) = (await answer.json())["explanations"]
    assert (found["worker"], found["prompt_tokens"], len(found["candidates"])) == ("w0", 100, 2)
    assert "booking" not in found
    refused = await client.post("/admin/explain", json={})
    assert refused.status == 400
    assert "messages" in (await refused.json())["error"]["message"]
    elsewhere = await client.post("/admin/explain", json={"keys": ""}, headers={"Host": "evil.example"})
    assert elsewhere.status == 403


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "", "10.0.0.1", ":", "localhost:99999"])
async def test_only_loopback_names_are_answered_on_loopback(client: TestClient, host: str) -> None:
    for path in ("/admin/", "/admin/page.js", "/admin/workers", "/admin/placements", "/admin/explain"):
        assert (await client.get(path, headers={"Host": host})).status == 403


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "127.0.0.1:1", "[::1]", "[::1]:8000"])
async def test_loopback_has_many_names(client: TestClient, host: str) -> None:
    assert (await client.get("/admin/", headers={"Host": host})).status == 200


async def test_admin_leads_to_its_page(client: TestClient) -> None:
    answer = await client.get("/admin")
    assert answer.url.path == "/admin/"
    assert "default-src 'self'" in answer.headers["Content-Security-Policy"]


@pytest.mark.parametrize(("address", "status"), [("127.0.0.1:0", 200), ("0.0.0.0:0", 404)])
async def test_the_port_is_shared_on_loopback_only(address: str, status: int) -> None:
    async with gateways.router([], http=address) as addresses, aiohttp.ClientSession() as http:
        port = addresses["http"].rpartition(":")[2]
        for page in ("/admin/", "/admin/workers", "/metrics"):
            async with http.get(f"http://127.0.0.1:{port}{page}") as response:
                assert response.status == status


@needs_chromium
async def test_the_page_lives(server: TestServer, core: FixedCore, tmp_path: Path) -> None:
    core.placed = [replace(PLACEMENT, reason=EVIL)]
    async with opened(str(server.make_url("/admin/")), tmp_path) as page:
        await page.wait("document.querySelectorAll('#workers tbody tr').length === 2")
        rows = await page.text("#workers tbody tr")
        assert "w0 healthy" in rows[0]
        assert "25.0 %" in rows[0]
        assert "75.0 %" in rows[0]
        assert "w1 stuck" in rows[1]
        assert NONE in rows[1]
        assert await page.text("#link") == ["live"]

        (alarm,) = await page.text("#alarm")
        assert "The index runs in Python" in alarm

        (placed,) = await page.text("#placements tbody tr")
        assert EVIL in placed  # shown as it is, and not as markup
        assert f"{NONE} / 64 / 80" in placed
        (pulled,) = await page.text("#pulls tbody tr")
        assert "2.00 GB/s" in pulled
        assert "1 gone" in pulled
        assert "rescued" in pulled
        assert await page.evaluate("document.title") == "Warmfleet"

        await page.evaluate("document.querySelector('#placements button').click()")
        await page.wait("document.querySelectorAll('#candidates tbody tr').length === 2")
        chosen, _ = await page.text("#candidates tbody tr")
        assert "Holds 64 of the 100 prompt tokens" in chosen
        assert "cheapest of 2" in (await page.text("#verdict"))[0]
        await page.evaluate("document.querySelector('#ask textarea').value = '{}'")
        await page.evaluate("document.querySelector('#ask button').click()")
        await page.wait("document.querySelector('#verdict').innerText.includes('messages: expected some')")
        page.complaints.clear()  # the browser logs the 400

        core.index_native = True
        core.set_worker(hit_minute=HitRate(60, 120))
        core.placed = [
            replace(PLACEMENT, booking=1, request_id="r-2", delivered_tokens=64, ending="ok"),
            *core.placed,
        ]
        await page.wait("document.querySelector('#workers tbody tr').innerText.includes('50.0 %')")
        await page.wait("document.querySelectorAll('#placements tbody tr').length === 2")
        newest, _ = await page.text("#placements tbody tr")
        assert "r-2" in newest
        assert "64 / 64 / 80" in newest
        assert await page.evaluate("document.querySelector('#alarm').hidden")

        assert page.complaints == []  # nothing blocked, nothing failed
        await server.close()
        await page.wait("document.querySelector('#link').innerText === 'disconnected'")


@needs_chromium
async def test_a_worker_shows_how_far_its_blocks_can_be_believed(
    server: TestServer, core: FixedCore, tmp_path: Path
) -> None:
    core.shown = [
        WORKER,
        replace(WORKER, worker="w1", confidence=0.834),
        replace(WORKER, worker="w2", agreement=0.59),
        replace(WORKER, worker="w3", agreement=1.0),
        replace(WORKER, worker="w4", confidence=1.0, agreement=0.4),
    ]
    async with opened(str(server.make_url("/admin/")), tmp_path) as page:
        await page.wait("document.querySelectorAll('#workers tbody tr').length === 5")
        blocks = await page.text("#workers td:nth-child(4)")
        assert [cell.partition("50 / 200")[2].strip() for cell in blocks] == [
            "",
            "guessed, 83 % true",
            "events disagree: 41 %",
            "",
            "guessed, 100 % true · events disagree: 60 %",
        ]
        assert page.complaints == []


@needs_chromium
@pytest.mark.parametrize("width", [1280, 400])
async def test_nothing_sticks_out(server: TestServer, core: FixedCore, tmp_path: Path, width: int) -> None:
    long = "w" * 128
    core.shown = [replace(WORKER, worker=long, model=long)]
    core.placed = [replace(PLACEMENT, worker=long, request_id=long, reason="reason " * 40)]
    async with opened(str(server.make_url("/admin/")), tmp_path) as page:
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        await page.call("Emulation.setDeviceMetricsOverride", **metrics)
        await page.wait("document.querySelectorAll('#placements tbody tr').length === 1")
        assert await page.evaluate("document.documentElement.scrollWidth") <= width
        sticking = (
            "[...document.querySelectorAll('td')].filter((e) => e.scrollWidth > e.clientWidth + 1).length"
        )
        assert await page.evaluate(sticking) == 0
