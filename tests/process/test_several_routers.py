"""A gateway of several processes before two routers that share nothing but the workers."""

import contextlib
import json
import re
import signal
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.model import demo_model_path
from tests.process.programs import ANY, Program, answers, get, program, until, worker


@dataclass
class Site:
    gateway: Program
    routers: list[Program]

    @property
    def url(self) -> str:
        return f"http://{self.gateway.said['http']}"

    def ask(self, text: str, **more: Any) -> tuple[dict[str, Any], float]:
        """The answer, and how long it took."""
        began = time.monotonic()
        with self.open(text, **more) as response:
            return json.loads(response.read()), time.monotonic() - began

    def open(self, text: str, **more: Any) -> Any:
        body = {"model": "sim", "max_tokens": 2, "messages": [{"role": "user", "content": text}], **more}
        data, headers = json.dumps(body).encode(), {"Content-Type": "application/json"}
        return urllib.request.urlopen(
            urllib.request.Request(f"{self.url}/v1/chat/completions", data, headers), timeout=60
        )

    def fleet(self, of: Program) -> dict[str, Any]:
        """As this router sees it."""
        shown: dict[str, Any] = json.loads(get(f"http://{of.said['http']}/admin/workers"))["fleet"]
        return shown

    def placements(self, of: Program) -> int:
        return int(self.fleet(of)["placements"])

    def known(self, of: Program, latest: int) -> list[int]:
        """How much of each prompt placed lately this router knew to lie somewhere, in tokens."""
        shown = json.loads(get(f"http://{of.said['http']}/admin/placements"))["placements"]
        return [placement["available_tokens"] for placement in shown[:latest]]

    def answering(self) -> list[int]:
        """Routers, as each gateway process sees them."""
        pages = [get(f"http://{address}/metrics").decode() for address in self.gateway.said["metrics"]]
        return [int(float(re.findall(r"^\S+answering_routers (\S+)", page, re.M)[0])) for page in pages]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    model = str(demo_model_path())
    with contextlib.ExitStack() as stack:
        places = [stack.enter_context(worker(tmp_path, f"w{n}", ANY, timing__step_s=0.02)) for n in range(2)]
        workers = [each.said["grpc"] for each in places]
        routers = [
            stack.enter_context(
                program(tmp_path, "router", http=ANY, listen=ANY, model=model, workers=workers)
            )
            for _ in range(2)
        ]
        addresses = [router.said["grpc"] for router in routers]
        gateway = program(
            tmp_path, "gateway", http=ANY, metrics=ANY, router=addresses, processes=2, model=model
        )
        made = Site(stack.enter_context(gateway), routers)
        url = made.url  # once it is ready
        until(lambda: answers(f"{url}/health"))
        yield made


def cached(answer: dict[str, Any]) -> int:
    tokens: int = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
    return tokens


def test_requests_go_on_while_a_router_is_stopped_and_after_it_is_killed(site: Site) -> None:
    texts = [f"{n} is how this talk begins, " + "and it is long " * 60 for n in range(12)]
    for text in texts:
        assert cached(site.ask(text)[0]) < 50
    before = [site.placements(router) for router in site.routers]
    assert sum(before) == 12
    assert min(before) >= 1, "both are asked"

    site.routers[0].process.send_signal(signal.SIGSTOP)
    times = [site.ask(text)[1] for text in texts]
    assert max(times) < 10, times
    assert site.placements(site.routers[1]) == before[1] + 12
    site.routers[0].process.send_signal(signal.SIGCONT)
    until(lambda: site.answering() == [2, 2])

    streams: list[list[str]] = [[] for _ in texts]

    def read(text: str, said: list[str]) -> None:
        with site.open(text, stream=True, max_tokens=60) as response:
            said.extend(line.decode() for line in response)

    threads = [
        threading.Thread(target=read, args=pair, daemon=True) for pair in zip(texts, streams, strict=True)
    ]
    for thread in threads:
        thread.start()
    until(lambda: all(streams))
    site.routers[0].kill()
    again = [site.ask(text) for text in texts]
    assert max(seconds for _, seconds in again) < 10, again
    known = site.known(site.routers[1], len(again))
    assert min(known) > 200, "it knows what was placed by the other one, too"
    for thread in threads:
        thread.join(60)
    assert all(said[-2] == "data: [DONE]\n" for said in streams), "what runs needs no router"
    until(lambda: site.answering() == [1, 1])
    until(lambda: site.fleet(site.routers[1])["bookings"] == 0)
