"""Bad input: the right 4xx with its field named, at once, and nobody else hears of it."""

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.process.programs import Processes, get, processes

GOOD: dict[str, Any] = {"model": "sim", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
CONTEXT = 4096
MB = 1 << 20


@pytest.fixture(scope="module")
def sims(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    logs = tmp_path_factory.mktemp("logs")
    with processes(logs, 1, instant=True, max_context=CONTEXT) as running:
        assert post(running, GOOD).status == 200
        yield running


@pytest.fixture(autouse=True)
def undisturbed(sims: Processes) -> Iterator[None]:
    """No test here may place a request, reach a worker, or end a process."""
    before = touched(sims)
    yield
    assert touched(sims) == before
    assert sims.router.alive


def touched(sims: Processes) -> list[tuple[int, int]]:
    return [(int(w["placements"]), int(w["requests"])) for w in _views(sims)]


def _views(sims: Processes) -> list[dict[str, Any]]:
    shown = get(f"http://{sims.workers[0].said['http']}/metrics").decode()
    asked = next(line for line in shown.splitlines() if line.startswith("warmfleet_worker_requests_total"))
    return [w | {"requests": float(asked.split()[-1])} for w in sims.admin()]


class Answer(NamedTuple):
    status: int
    error: dict[str, Any]
    seconds: float


def exchange(sims: Processes, *parts: bytes, pause_s: float = 0) -> Answer:
    """What the gateway says to these bytes, on a connection of its own."""
    host, _, port = sims.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=60) as client:
        began = time.monotonic()
        for part in parts:
            try:
                client.sendall(part)
            except (BrokenPipeError, ConnectionResetError):
                break  # it has said what it thinks already
            time.sleep(pause_s)
        received = _read(client)
        seconds = time.monotonic() - began
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1."), received[:200]
    shown = json.loads(body) if body.startswith(b"{") else {}
    return Answer(int(head.split()[1]), shown.get("error", {}), seconds)


def _read(client: socket.socket) -> bytes:
    """One response with its Content-Length."""
    received = b""
    while True:
        head, separator, body = received.partition(b"\r\n\r\n")
        if separator:
            length = next(
                int(h.split(b":")[1]) for h in head.split(b"\r\n") if h.lower().startswith(b"content-l")
            )
            if len(body) >= length:
                return received
        more = client.recv(1 << 16)
        if not more:
            return received
        received += more


def request(body: bytes, *headers: str, path: str = "/v1/chat/completions") -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: x", "Content-Type: application/json", *headers]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


def post(sims: Processes, fields: dict[str, Any] | bytes, path: str = "/v1/chat/completions") -> Answer:
    body = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    return exchange(sims, request(body, path=path))


def refused(sims: Processes, wire: bytes, status: int, field: str | None) -> None:
    """At once, on a machine that may be busy with something else; ``tests.bars bad_input`` has the figure."""
    answers = [exchange(sims, wire) for _ in range(3)]
    for answer in answers:
        assert answer.status == status, answer
        assert answer.error["message"]
        assert answer.error["type"] == "invalid_request_error"
        if field is not None:
            assert field in (answer.error["param"] or ""), answer
            assert field in answer.error["message"]
    assert min(answer.seconds for answer in answers) < 2


def without_end(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields).encode()[:-5]


JSON = {
    "not JSON": b"hello",
    "empty": b"",
    "truncated": without_end(GOOD),
    "array": b"[]",
    "duplicate key": b'{"model": "sim", "model": "sim", "messages": [{"role": "user", "content": "x"}]}',
    "nested": b"[" * 10_000,
    "nested in a field": b'{"model": "sim", "metadata": ' + b"[" * 10_000 + b"]" * 10_000 + b"}",
    "long integer": b'{"model": "sim", "max_tokens": ' + b"9" * 4301 + b"}",
    "1e400": b'{"model": "sim", "messages": [{"role": "user", "content": "x"}], "temperature": 1e400}',
    "NaN": b'{"model": "sim", "messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
    "not UTF-8": b'{"model": "sim", "messages": [{"role": "user", "content": "\xff\xfe"}]}',
    "lone surrogate": b'{"model": "sim", "messages": [{"role": "user", "content": "\\ud800"}]}',
}


@pytest.mark.parametrize("case", JSON)
def test_i1_json(sims: Processes, case: str) -> None:
    refused(sims, request(JSON[case]), 400, None)


def test_i1_one_byte_over_the_cap(sims: Processes) -> None:
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    refused(sims, f"{head}Content-Length: {(16 << 20) + 1}\r\n\r\n".encode(), 413, "body")


def test_i1_over_the_cap_in_chunks(sims: Processes) -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    chunk = b"100000\r\n" + bytes(MB) + b"\r\n"
    answer = exchange(sims, head + b"Transfer-Encoding: chunked\r\n\r\n", *[chunk] * 17)
    assert (answer.status, answer.error["param"]) == (413, "body")


IDS = {
    "negative": [-1],
    "vocabulary size": [49152],
    "2^31": [2**31],
    "2^63": [2**63],
    "true": [True],
    "1.5": [1.5],
    "nested": [[[1]]],
    "empty": [],
    "empty inside": [[]],
    "mixed": [1, "a"],
    "context": [1] * CONTEXT,
    "a million": [1] * 1_000_000,
}


@pytest.mark.parametrize("case", IDS)
def test_i2_token_ids(sims: Processes, case: str) -> None:
    body = json.dumps({"model": "sim", "prompt": IDS[case], "max_tokens": 1}).encode()
    if case == "a million":  # a body of 3 MB; only its time is different
        answer = exchange(sims, request(body, path="/v1/completions"))
        assert (answer.status, answer.error["param"]) == (400, "prompt")
        return
    refused(sims, request(body, path="/v1/completions"), 400, "prompt")


PARAMETERS: dict[str, tuple[str, Any]] = {
    "max_tokens -1": ("max_tokens", -1),
    "max_tokens 0": ("max_tokens", 0),
    "max_tokens 10^12": ("max_tokens", 10**12),
    "n 10^9": ("n", 10**9),
    "n 0": ("n", 0),
    "temperature -1": ("temperature", -1),
    "temperature text": ("temperature", "hot"),
    "top_p 2": ("top_p", 2),
    "10,000 stops": ("stop", ["x"] * 10_000),
    "an endless stop": ("stop", "x" * 5000),
    "logit_bias of 10^6": ("logit_bias", {str(i): 1 for i in range(10_000)}),
    "seed": ("seed", 2**64),
    "top_logprobs": ("top_logprobs", 99),
    "unknown": ("no_such_field", 1),
    "penalty": ("frequency_penalty", 1.5),
    "salt empty": ("cache_salt", ""),
    "salt 1 MB": ("cache_salt", "x" * MB),
    "salt NUL": ("cache_salt", "\0"),
    "role": ("messages", [{"role": "king", "content": "x"}]),
    "image": ("messages", [{"role": "user", "content": [{"type": "image_url"}]}]),
    "no messages": ("messages", []),
    "tool_choice": ("tool_choice", "required"),
    "stream": ("stream", "yes"),
    "too long": ("messages", [{"role": "user", "content": "word " * 5000}]),
}


@pytest.mark.parametrize("case", PARAMETERS)
def test_i3_parameters(sims: Processes, case: str) -> None:
    field, value = PARAMETERS[case]
    fields = GOOD | {field: value}
    if case == "top_logprobs":
        fields["logprobs"] = True
    refused(sims, request(json.dumps(fields).encode()), 400, field)


def test_i3_unknown_model(sims: Processes) -> None:
    refused(sims, request(json.dumps(GOOD | {"model": "gpt-5"}).encode()), 404, "model")


GOOD_BODY = json.dumps(GOOD).encode()
HEADERS = {
    "20 kB header": (request(GOOD_BODY, "X-Long: " + "x" * 20_000), 400),
    "20 kB target": (b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "two lengths": (request(GOOD_BODY, "Content-Length: 5"), 400),
    "length and chunks": (request(GOOD_BODY, "Transfer-Encoding: chunked"), 400),
    "bare CR in an id": (request(GOOD_BODY, "X-Request-Id: a\rb"), 400),
    "NUL in an id": (request(GOOD_BODY, "X-Request-Id: a\0b"), 400),
    "no HTTP": (b"\x16\x03\x01\x02\x00 this is TLS\r\n\r\n", 400),
    "gzip": (request(GOOD_BODY, "Content-Encoding: gzip"), 415),
    "form": (request(GOOD_BODY).replace(b"application/json", b"application/x-www-form-urlencoded"), 415),
    "dots": (b"GET /v1/../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n", 404),
    "escaped dots": (b"GET /v1/%2e%2e/%2e%2e/etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n", 404),
    "absolute form": (b"GET http://elsewhere/nowhere HTTP/1.1\r\nHost: x\r\n\r\n", 404),
    "method": (b"DELETE /v1/models HTTP/1.1\r\nHost: x\r\n\r\n", 405),
    "timeout": (request(GOOD_BODY, "X-Request-Timeout-S: -1"), 400),
    "timeout NaN": (request(GOOD_BODY, "X-Request-Timeout-S: nan"), 400),
}


@pytest.mark.parametrize("case", HEADERS)
def test_i4_headers(sims: Processes, case: str) -> None:
    wire, status = HEADERS[case]
    refused(sims, wire, status, None)


def test_i4_a_split_request_id_is_no_header(sims: Processes) -> None:
    """CR LF in an id begins the next header line, which is ours to ignore; it is never echoed as one."""
    host, _, port = sims.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=60) as client:
        client.sendall(b"GET /v1/models HTTP/1.1\r\nHost: x\r\nX-Request-Id: a\r\nX-Injected: b\r\n\r\n")
        received = _read(client)
    assert b"X-Injected" not in received


def test_l6_two_hundred_thousand_chunks_of_one_byte(sims: Processes) -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    wire = head + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\n \r\n" * 200_000
    answer = exchange(sims, *[wire[i : i + 60_000] for i in range(0, len(wire), 60_000)])
    assert answer.status == 400
    assert "chunks" in answer.error["message"]


def test_l6_bodies_that_trickle_are_cut_off(sims: Processes) -> None:
    """200 of them, and the gateway answers others meanwhile."""
    host, _, port = sims.url.removeprefix("http://").partition(":")
    opened = time.monotonic()
    clients = [socket.create_connection((host, int(port)), timeout=60) for _ in range(200)]
    for client in clients:
        client.sendall(request(GOOD_BODY)[:-20])
    assert get(f"{sims.url}/v1/models")
    clients[0].setblocking(False)
    with pytest.raises(BlockingIOError):
        clients[0].recv(1)
    clients[0].settimeout(60)
    assert _read(clients[0]).startswith(b"HTTP/1.1 408")
    assert time.monotonic() - opened > 5
    for client in clients[1:]:
        assert _read(client).startswith(b"HTTP/1.1 408")
        client.close()
    clients[0].close()


def test_memory_comes_back(sims: Processes) -> None:
    def rss() -> int:
        status = Path(f"/proc/{sims.router.process.pid}/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) << 10

    post(sims, b"[" * MB)
    before = rss()
    for _ in range(10):
        assert post(sims, b'{"model": "' + b"x" * 15 * MB + b'"}').status == 400
    assert rss() - before <= 48 * MB
