"""SIGKILL of a worker: its answers go on at another one, token for token; new requests do not notice."""

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.process.programs import Processes, metric, processes, until, worker

STEP_S = 0.01
SYSTEM = "You know every river and every bridge of Europe, and you tell of them at length. " * 8


@pytest.fixture
def sims(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    with processes(tmp_path_factory.mktemp("logs"), 3, timing__step_s=STEP_S) as running:
        yield running


@dataclass
class Reader(threading.Thread):
    """One streamed request, read to its end."""

    url: str
    number: int
    choices: int = 1
    events: list[str] = field(default_factory=list)
    worker: str = ""
    status: int = 0

    def __post_init__(self) -> None:
        super().__init__(daemon=True)

    __hash__ = threading.Thread.__hash__

    def run(self) -> None:
        with urllib.request.urlopen(asked(self.url, self.fields), timeout=60) as response:
            self.status = response.status
            self.worker = response.headers["X-Warmfleet-Worker"]
            for line in response:
                if line.startswith(b"data: "):
                    self.events.append(line[6:].decode().strip())

    @property
    def fields(self) -> dict[str, Any]:
        messages = [{"role": "user", "content": f"{self.number}"}]
        sampled = {"temperature": 1, "seed": self.number, "n": self.choices, "max_tokens": 500}
        return {"stream": True, "messages": messages, "stream_options": {"include_usage": True}} | sampled

    @property
    def text(self) -> str:
        choices = [choice for event in self.events[:-1] for choice in json.loads(event)["choices"]]
        return "".join(choice["delta"].get("content", "") for choice in choices)

    @property
    def usage(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.events[-2])["usage"]
        return found

    @property
    def error(self) -> dict[str, Any] | None:
        last = json.loads(self.events[-1]) if self.events[-1] != "[DONE]" else {}
        found: dict[str, Any] | None = last.get("error")
        return found


def asked(url: str, fields: dict[str, Any]) -> urllib.request.Request:
    body = json.dumps({"model": "sim"} | fields).encode()
    return urllib.request.Request(f"{url}/v1/chat/completions", body, {"Content-Type": "application/json"})


def ask(url: str, **fields: Any) -> tuple[str, dict[str, Any]]:
    """(worker, answer). Raises HTTPError."""
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "hi"}]
    with urllib.request.urlopen(
        asked(url, {"messages": messages, "max_tokens": 2} | fields), timeout=60
    ) as r:
        return r.headers["X-Warmfleet-Worker"], json.loads(r.read())


def cached(answer: dict[str, Any]) -> int:
    return int(answer["usage"]["prompt_tokens_details"]["cached_tokens"])


def test_answers_go_on_where_their_worker_is_killed(sims: Processes) -> None:
    readers = begun(Reader(sims.url, number) for number in range(12))
    texts: list[str] = []
    threads = [threading.Thread(target=lambda: texts.append(whole(sims.url, readers[0]))) for _ in range(6)]
    for thread in threads:
        thread.start()
    until(lambda: sum(metric(each, "running") for each in sims.workers) == len(readers) + len(threads))
    name = killed(sims)
    for thread in [*readers, *threads]:
        thread.join(60)
    assert 0 < sum(reader.worker == name for reader in readers) < len(readers)
    assert all(w["bookings"] == 0 for w in sims.admin())
    uncut = begun(Reader(sims.url, reader.number) for reader in readers)
    for reader, again in zip(readers, uncut, strict=True):
        again.join(60)
        assert reader.events[-1] == again.events[-1] == "[DONE]"
        assert reader.text == again.text
        for count in ("prompt_tokens", "completion_tokens"):
            assert reader.usage[count] == again.usage[count]
    assert texts == [readers[0].text] * 6


def whole(url: str, reader: Reader) -> str:
    """The same answer, not streamed."""
    fields = reader.fields | {"stream": False}
    del fields["stream_options"]
    return str(ask(url, **fields)[1]["choices"][0]["message"]["content"])


def test_several_choices_end_with_their_worker(sims: Processes) -> None:
    readers = begun(Reader(sims.url, number, choices=2) for number in range(12))
    name = killed(sims)
    for reader in readers:
        reader.join(60)
        assert reader.status == 200
    cut = [reader for reader in readers if reader.worker == name]
    assert 0 < len(cut) < len(readers)
    for reader in readers:
        if reader in cut:
            assert reader.error is not None
            assert reader.error["type"] == "server_error"
            assert "worker was lost" in reader.error["message"]
        else:
            assert reader.events[-1] == "[DONE]"
    assert all(w["bookings"] == 0 for w in sims.admin())


def begun(readers: Iterable[Reader]) -> list[Reader]:
    """Each of them has heard some of its answer."""
    started = list(readers)
    for reader in started:
        reader.start()
    until(lambda: all(len(reader.events) > 3 for reader in started))
    return started


def killed(sims: Processes) -> str:
    """The name of the first worker, which serves nobody from the first moment on."""
    victim = sims.workers[0]
    name, address = victim.said["worker"], victim.said["grpc"]
    victim.kill()
    at = time.monotonic()
    while time.monotonic() < at + 1:
        served_by, _ = ask(sims.url, max_tokens=1)
        assert served_by != name
    until(lambda: state_of(sims, address) == "lost")
    return str(name)


def state_of(sims: Processes, address: str) -> str:
    return next(str(w["state"]) for w in sims.admin() if w["address"] == address)


def test_reborn_with_an_empty_cache(sims: Processes, tmp_path_factory: pytest.TempPathFactory) -> None:
    holder, _ = ask(sims.url)
    again, warm = ask(sims.url)
    assert again == holder
    assert cached(warm) > 0
    victim = next(w for w in sims.workers if w.said["worker"] == holder)
    address = victim.said["grpc"]
    held = {w["address"]: w["held_blocks"] for w in sims.admin()}
    assert held[address] > 0
    victim.kill()
    with worker(tmp_path_factory.mktemp("logs"), holder, address, timing__step_s=STEP_S):
        until(lambda: state_of(sims, address) == "healthy")
        held = {w["address"]: w["held_blocks"] for w in sims.admin()}
        assert held[address] == 0
        for number in range(6):  # whoever serves it, nothing is expected of the reborn worker's past
            _, answer = ask(sims.url, seed=number)
        assert cached(answer) > 0


def test_all_are_gone(sims: Processes) -> None:
    for each in sims.workers:
        each.kill()
    began = time.monotonic()
    with pytest.raises(urllib.error.HTTPError) as refused:
        ask(sims.url)
    refused.value.close()
    assert refused.value.code in (502, 503)
    assert time.monotonic() - began < 10
    assert sims.router.alive


def test_of_many_prompts_only_the_worker_that_was_lost_is_to_blame(sims: Processes) -> None:
    """The others were given up with the request."""
    fields = {"model": "sim", "prompt": [f"{n} once" for n in range(24)], "n": 2, "max_tokens": 500}
    body = json.dumps(fields | {"ignore_eos": True}).encode()
    request = urllib.request.Request(f"{sims.url}/v1/completions", body, {"Content-Type": "application/json"})
    refused: list[int] = []

    def asking() -> None:
        with pytest.raises(urllib.error.HTTPError) as lost:
            urllib.request.urlopen(request, timeout=60)
        lost.value.close()
        refused.append(lost.value.code)

    thread = threading.Thread(target=asking)
    thread.start()
    until(lambda: all(metric(each, "running") >= 10 for each in sims.workers))
    victim = sims.workers[0]
    victim.kill()
    thread.join(60)
    assert refused == [502]
    until(lambda: all(w["bookings"] == 0 for w in sims.admin()))
    dropped = {w["address"]: w["dropped"] for w in sims.admin()}
    assert dropped.pop(victim.said["grpc"]) > 0
    assert set(dropped.values()) == {0}
