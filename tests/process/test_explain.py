"""Why a request of a live fleet went where it went, and where one would go that is not made."""

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from tests.process.programs import Processes, get, processes

CHAT = {
    "model": "sim",
    "messages": [{"role": "user", "content": "What lies under the harbour bridge? " * 30}],
    "max_tokens": 4,
}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    with processes(tmp_path_factory.mktemp("logs"), workers=3, instant=True) as running:
        yield running


def post(fleet: Processes, path: str, body: Any, request_id: str = "") -> Any:
    headers = {"Content-Type": "application/json"} | ({"X-Request-Id": request_id} if request_id else {})
    asked = urllib.request.Request(f"{fleet.url}{path}", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(asked, timeout=60) as answer:
        return json.loads(answer.read())


def test_a_made_and_a_supposed_request_are_explained_alike(fleet: Processes) -> None:
    usage = post(fleet, "/v1/chat/completions", CHAT, "asked-1")["usage"]
    made = json.loads(get(f"{fleet.url}/admin/explain?request_id=asked-1"))["explanations"][0]
    assert made["prompt_tokens"] == usage["prompt_tokens"]
    assert len(made["candidates"]) == 3
    assert sum(c["chosen"] for c in made["candidates"]) == 1
    for candidate in made["candidates"]:
        assert sum(t["seconds"] for t in candidate["terms"]) == pytest.approx(candidate["price_s"])
        assert candidate["says"].startswith(f"Holds 0 of the {made['prompt_tokens']} prompt tokens. Costs ")
    again = json.loads(get(f"{fleet.url}/admin/explain?booking={made['booking']}"))["explanations"]
    assert [entry["candidates"] for entry in again] == [made["candidates"]]

    placements = fleet.admin()[0]["placements"]
    supposed = post(fleet, "/admin/explain", CHAT)["explanations"][0]
    assert supposed["worker"] == made["worker"]  # which is warm now
    assert supposed["expected_tokens"] > 0.9 * supposed["prompt_tokens"]
    assert fleet.admin()[0]["placements"] == placements  # nothing was placed

    text = post(fleet, "/admin/explain", {"model": "sim", "prompt": ["one", "two"]})["explanations"]
    assert len(text) == 2
    keys = post(fleet, "/admin/explain", {"model": "sim", "keys": "AAAAAAAAAAA=", "prompt_tokens": 20})
    assert keys["explanations"][0]["prompt_tokens"] == 20


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        ("", {"model": "sim"}, 400, "prompt"),
        ("", {"model": "other", "prompt": "x"}, 404, "other"),
        ("", {"model": "sim", "keys": "AAAA", "prompt_tokens": 20}, 400, "keys"),
        ("", {"model": "sim", "keys": "AAAAAAAAAAA="}, 400, "prompt_tokens"),
        ("", {"model": "sim", "keys": "AAAAAAAAAAA=", "prompt_tokens": 20, "wat": 1}, 400, "wat"),
        ("?tenant=nobody", {"model": "sim", "prompt": "x"}, 404, "tenant"),
    ],
)
def test_what_cannot_be_explained_is_refused_by_name(
    fleet: Processes, path: str, body: Any, status: int, says: str
) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        post(fleet, f"/admin/explain{path}", body)
    with refused.value as error:
        assert error.code == status
        assert says in json.loads(error.read())["error"]["message"]
