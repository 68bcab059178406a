"""Where the CPU of a pick goes, without gRPC: the same code in this process, each part timed by itself.

Two servers that announce nothing, bodies whose text is in the tokenising memo. A figure is the least of
several rounds' means, in thread time.
"""

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

from envoy.config.core.v3.base_pb2 import HeaderMap, HeaderValue
from envoy.service.ext_proc.v3 import external_processor_pb2 as ext
from warmfleet_proto import router_pb2 as rpb
from warmfleet_proto import worker_pb2 as pb
from warmfleet_router.backends.worker import WorkerPool
from warmfleet_router.client import LocalRouter
from warmfleet_router.core import RouterCore
from warmfleet_router.gateway.aliases import Aliases
from warmfleet_router.gateway.intake import ANONYMOUS, Tenants
from warmfleet_router.gateway.placing import Upstream
from warmfleet_router.gateway.relay import RelayRequest, routed
from warmfleet_router.gateway.relaying import Relays
from warmfleet_router.gateway.reports import Reports
from warmfleet_router.gateway.retries import RetryBudget
from warmfleet_router.local import demo
from warmfleet_router.picker.exchange import Exchange
from warmfleet_router.prompt import tokenizer
from warmfleet_router.prompt.encoder import PromptEncoder
from warmfleet_router.routing import Routing
from warmfleet_router.servers import ask
from warmfleet_router.servers.catalogue import Servers
from warmfleet_router.servers.pool import ServerPool
from warmfleet_router.servers.tokens import Tokens

ROUNDS, EACH, SERVERS, OPEN = 12, 100, 2, 32
PATH = "/v1/chat/completions"


class Parts(NamedTuple):
    """Milliseconds a request. ``rest`` is the exchange without the parts before it."""

    protobuf: float  # Envoy's three messages read, the answers written
    body: float
    prompt: float
    route: float
    reports: float
    rest: float


class Bench:
    def __init__(self, model: str, bodies: Sequence[bytes]) -> None:
        self.core, ticks = RouterCore(Routing(), 1), itertools.count()
        self.clock = lambda: 10.0 + next(ticks) * 1e-5
        for n in range(SERVERS):
            self.core.roster.add(f"http://10.0.0.{n}:1")
            self.core.roster.joined(f"http://10.0.0.{n}:1", _status(model, f"10.0.0.{n}:1"), 9.0)
            report = pb.WatchKvResponse(epoch=1, load=pb.WorkerLoad())
            assert not any(self.core.roster.ingest(f"http://10.0.0.{n}:1", report, 9.9))
        self.core.tick(9.9)
        router = LocalRouter(self.core, self.clock)
        self.fleet = Upstream("g", router, WorkerPool("g"), Reports(router), RetryBudget(), self.clock)
        encoders = {model: PromptEncoder(tokenizer.load(demo.weights()), typed_specials=True)}
        self.servers = Servers()
        self.relays = Relays(self.fleet, {}, encoders, Aliases({}))
        self.tokens = Tokens(encoders, ServerPool())
        listed = self.core.list_workers(rpb.ListWorkersRequest(), 9.9)
        self.servers.update(listed)
        self.relays.update(listed)
        self.bodies = itertools.cycle(bodies)

    async def exchange(self) -> None:
        exchange = Exchange(self.relays, Tenants([]), 1 << 20)
        for message in next(self.told):
            await answers(exchange, message)
        self.open.append(exchange)
        self.open.popleft().ended()

    async def protobuf(self) -> None:
        for message, reply in zip(self.packed, self.replies, strict=True):
            ext.ProcessingRequest.FromString(message)
            reply.SerializeToString()

    async def body(self) -> None:
        ask.parse(next(self.bodies), True)

    async def prompt(self) -> None:
        await self.tokens.of(next(self.asks), b"", [])

    async def route(self) -> None:
        wanted = next(self.wanted)
        self.booked.append((await self.fleet.router.route(routed(wanted, self.servers, "g"))).booking)

    async def reports(self) -> None:
        booking = self.booked.popleft()
        self.fleet.reports.progress(rpb.ProgressRequest(booking=booking, ttft_s=0.1, cached_later=True))
        done = rpb.FinishRequest(booking=booking, outcome=rpb.FinishRequest.OK, ttft_s=0.1, e2e_s=0.1)
        self.fleet.reports.finish(done)

    async def prepare(self, bodies: Sequence[bytes]) -> None:
        """What each part needs of those before it."""
        asks = [ask.parse(body, True) for body in bodies]
        ids = [await self.tokens.of(each, b"", []) for each in asks]
        wanted = [RelayRequest("r", ANONYMOUS, a, "", i, 0.0, PATH) for a, i in zip(asks, ids, strict=True)]
        self.asks, self.wanted = itertools.cycle(asks), itertools.cycle(wanted)
        self.told = itertools.cycle([messages(body) for body in bodies])
        self.booked: deque[int] = deque()
        self.open = deque(Exchange(self.relays, Tenants([]), 1 << 20) for _ in range(OPEN))
        for _ in range(OPEN):
            await self.exchange()
        exchange, told = Exchange(self.relays, Tenants([]), 1 << 20), messages(bodies[0])
        self.packed = [message.SerializeToString() for message in told]
        self.replies = [reply for message in told for reply in await answers(exchange, message)]
        assert self.replies[1].HasField("request_body"), self.replies[1]
        exchange.ended()


async def answers(exchange: Exchange, message: Any) -> Sequence[Any]:
    taken = exchange.take(message)
    return taken if isinstance(taken, Sequence) else await taken()


def messages(body: bytes) -> list[Any]:
    """As Envoy sends them."""
    path = HeaderMap(headers=[HeaderValue(key=":path", raw_value=PATH.encode())])
    status = HeaderMap(headers=[HeaderValue(key=":status", raw_value=b"200")])
    return [
        ext.ProcessingRequest(request_headers=ext.HttpHeaders(headers=path)),
        ext.ProcessingRequest(request_body=ext.HttpBody(body=body, end_of_stream=True)),
        ext.ProcessingRequest(response_headers=ext.HttpHeaders(headers=status)),
    ]


def _status(model: str, name: str) -> pb.StatusResponse:
    return pb.StatusResponse(
        worker=name,
        epoch=1,
        model=model,
        model_fingerprint=b"f",
        block_size=16,
        total_blocks=4096,
        max_context=1 << 20,
        engine="openai",
        silent=True,
        anonymous_load=True,
    )


async def _measured(bench: Bench) -> Parts:
    """The parts take turns within a round: the machine is the same for all."""
    parts = (bench.exchange, bench.protobuf, bench.body, bench.prompt, bench.route, bench.reports)
    least = [float("inf")] * len(parts)
    for _ in range(ROUNDS):
        for n, part in enumerate(parts):
            least[n] = min(least[n], await _seconds(part) / EACH * 1e3)
    whole, protobuf, *inner = least
    return Parts(protobuf, *inner, whole - sum(inner))


async def _seconds(part: Callable[[], Awaitable[None]]) -> float:
    start = time.thread_time()
    for _ in range(EACH):
        await part()
    return time.thread_time() - start


def measure(model: str, bodies: Sequence[bytes]) -> Parts:
    async def run() -> Parts:
        bench = Bench(model, bodies)
        await bench.prepare(bodies)
        return await _measured(bench)

    return asyncio.run(run())


if __name__ == "__main__":
    from tests.bars import picks

    print(measure(picks.MODEL, picks.bodies()))
