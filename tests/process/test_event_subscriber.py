"""Subscribers against real ZeroMQ publishers: honest ones that come and go, and a hostile one."""

import asyncio
import random
import resource
import socket as tcp
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

import pytest
import zmq
import zmq.asyncio
from warmfleet_router.events import vllm, wire
from warmfleet_router.events.follower import Follower, State
from warmfleet_router.events.mirror import Mirror
from warmfleet_router.events.subscriber import Subscriber
from warmfleet_router.view import Counters

from tests.unit.events.engine import FINGERPRINT, PROMPTS, SIZE, Engine, Index
from tests.unit.events.releases import VLLM

RELEASE = VLLM[-2]
TOPIC = b"kv-events"


class Publisher:
    """As vLLM's: PUB for live batches, ROUTER for replays, which lack the topic."""

    def __init__(self, engine: Engine, port: int = 0, topic: bytes = TOPIC) -> None:
        self.engine = engine
        self._topic = topic
        context = zmq.asyncio.Context.instance()
        self._live, self._replay = context.socket(zmq.PUB), context.socket(zmq.ROUTER)
        for socket in (self._live, self._replay):
            socket.linger = 0
        _bind(self._live, f"tcp://127.0.0.1:{port or '*'}")
        self._replay.bind("tcp://127.0.0.1:*")
        self._serving = asyncio.create_task(self._serve())

    @property
    def endpoint(self) -> str:
        return self._live.last_endpoint.decode()

    @property
    def replay_endpoint(self) -> str:
        return self._replay.last_endpoint.decode()

    async def publish(self, seq: int) -> None:
        await self._live.send_multipart([self._topic, seq.to_bytes(8, "big"), self.engine.log[seq]])

    async def close(self) -> None:
        self._serving.cancel()
        await asyncio.gather(self._serving, return_exceptions=True)
        self._live.close()
        self._replay.close()

    async def _serve(self) -> None:
        while True:
            who, empty, after = await self._replay.recv_multipart()
            for seq in range(int.from_bytes(after, "big"), len(self.engine.log)):
                frames = [who, empty, seq.to_bytes(8, "big"), self.engine.log[seq]]
                await self._replay.send_multipart(frames)
            await self._replay.send_multipart([who, empty, (-1).to_bytes(8, "big", signed=True), b""])


def _bind(socket: zmq.asyncio.Socket, endpoint: str) -> None:
    """A port that was just let go is let go by ZeroMQ's own thread, a moment later."""
    until = time.monotonic() + 60
    while True:
        try:
            socket.bind(endpoint)
            return
        except zmq.ZMQError as error:
            if error.errno != zmq.EADDRINUSE or time.monotonic() > until:
                socket.close()
                raise
            time.sleep(0.01)


class Spoilt(Exception):
    pass


class Listener:
    """A subscriber with its index."""

    def __init__(self, endpoint: str, replay: str = "") -> None:
        self.index = Index()
        self.counters = Counters()
        self.follower = Follower(vllm.Decoder(), Mirror(FINGERPRINT, SIZE), self.counters, bool(replay))
        self.settled = asyncio.Event()
        sink, settled = self._perform, self.settled.set
        self._subscriber = Subscriber(endpoint, replay, self.follower, sink, time.monotonic, "w", settled)
        self.task = asyncio.create_task(self._subscriber.run())

    def _perform(self, instruction: object) -> None:
        self.index.perform([instruction])  # type: ignore[list-item]

    async def close(self) -> None:
        self.task.cancel()
        with suppress(asyncio.CancelledError, Spoilt):
            await self.task


@asynccontextmanager
async def closing(*things: Publisher | Listener) -> AsyncIterator[None]:
    try:
        yield
    finally:
        for thing in things:
            await thing.close()


async def until(true: Callable[[], bool], seconds: float = 60.0) -> None:
    async with asyncio.timeout(seconds):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def heard(publisher: Publisher, listener: Listener) -> None:
    """Publishes until the listener has its subscription through, and knows all that the engine holds."""
    async with asyncio.timeout(60):
        while listener.index.present != publisher.engine.present or not listener.follower.next:
            publisher.engine.compute(PROMPTS[len(publisher.engine.log) % 8])
            await publisher.publish(len(publisher.engine.log) - 1)
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("topic", [b"", TOPIC])
async def test_a_late_subscriber_to_an_idle_engine_gets_what_it_remembers(topic: bytes) -> None:
    publisher = Publisher(Engine(RELEASE), topic=topic)
    for prompt in PROMPTS:
        publisher.engine.compute(prompt)  # never published
    listener = Listener(publisher.endpoint, publisher.replay_endpoint)
    async with closing(listener, publisher):
        async with asyncio.timeout(60):
            await listener.settled.wait()
        assert listener.index.present == publisher.engine.present
        await heard(publisher, listener)
        assert listener.counters.kv_new_epochs == 0


async def test_a_gap_is_filled_by_replay() -> None:
    publisher = Publisher(Engine(RELEASE))
    listener = Listener(publisher.endpoint, publisher.replay_endpoint)
    async with closing(listener, publisher):
        await heard(publisher, listener)
        for prompt in PROMPTS:
            publisher.engine.compute(prompt)  # never published
        await heard(publisher, listener)
        assert listener.counters.kv_gaps >= 1


async def test_who_cannot_be_asked_is_not_waited_for() -> None:
    publisher = Publisher(Engine(RELEASE))
    listener = Listener(publisher.endpoint)
    async with closing(listener, publisher):
        await listener.settled.wait()
        assert not listener.follower.next


@pytest.mark.parametrize("part", ["begin", "receive", "replayed", "replay_ended", "tick", "disconnected"])
async def test_no_part_of_listening_fails_unnoticed(monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    def spoilt(*_: object) -> None:
        raise Spoilt

    monkeypatch.setattr(Follower, part, spoilt)
    publisher = Publisher(Engine(RELEASE))
    publisher.engine.compute(PROMPTS[0])
    listener = Listener(publisher.endpoint, publisher.replay_endpoint)
    async with closing(listener):
        async with asyncio.timeout(60), closing(publisher):
            while part != "disconnected" and not listener.task.done():
                await publisher.publish(0)
                await asyncio.sleep(0.01)
        with pytest.raises(Spoilt):
            await listener.task


async def test_a_restarted_engine_is_learned_anew() -> None:
    publisher = Publisher(Engine(RELEASE))
    listener = Listener(publisher.endpoint)
    async with closing(listener):
        async with closing(publisher):
            await heard(publisher, listener)
            port = int(publisher.endpoint.rpartition(":")[2])
        again = Publisher(Engine(RELEASE, seed=5), port)
        async with closing(again):
            again.engine.compute(PROMPTS[7])
            again.engine.reset()
            await heard(again, listener)
            assert listener.counters.kv_new_epochs == 1


async def test_an_engine_that_connects_finds_a_subscriber_that_binds() -> None:
    context = zmq.asyncio.Context.instance()
    engine = Engine(RELEASE)
    engine.compute(PROMPTS[0])
    # No publisher before it: an engine that met one would give up for good.
    with closed_port() as port:
        listener = Listener(f"tcp://*:{port}")
        await asyncio.sleep(0)  # it finds its port taken
    async with closing(listener):
        with context.socket(zmq.PUB) as socket:
            socket.linger = 0
            socket.connect(f"tcp://127.0.0.1:{port}")
            async with asyncio.timeout(60):
                while not listener.index.present:
                    await socket.send_multipart([b"", bytes(8), engine.log[0]])
                    await asyncio.sleep(0.02)
        assert listener.index.present == engine.present


@contextmanager
def closed_port() -> Iterator[int]:
    """Taken, and nobody listens; below the ports that connections take."""
    for port in random.sample(range(20_000, 30_000), 100):
        with tcp.socket() as taken:
            try:
                taken.bind(("127.0.0.1", port))
            except OSError:
                continue
            yield port
            return
    pytest.fail("no port is free")


@contextmanager
def hostile(frames: Callable[[int], list[bytes]]) -> Iterator[str]:
    """A publisher in a thread of its own that sends ``frames(n)`` as fast as it can."""
    context = zmq.Context()
    socket = context.socket(zmq.PUB)
    socket.linger = 0
    socket.sndhwm = 1000
    socket.bind("tcp://127.0.0.1:*")
    stop = threading.Event()

    def flood() -> None:
        n = 0
        while not stop.is_set():
            socket.send_multipart(frames(n))
            n += 1

    thread = threading.Thread(target=flood)
    thread.start()
    try:
        yield socket.last_endpoint.decode()
    finally:
        stop.set()
        thread.join()
        context.destroy(linger=0)


def small(n: int) -> list[bytes]:
    return [b"", n.to_bytes(8, "big"), RELEASE.batch()]


def garbage(n: int) -> list[bytes]:
    return [b"", n.to_bytes(8, "big"), b"\xc1" * 1000]


def huge(n: int) -> list[bytes]:
    return [b"", n.to_bytes(8, "big"), bytes(wire.PAYLOAD_BYTES + 1)]


def jumping(n: int) -> list[bytes]:
    return [b"", ((n * 0x9E3779B97F4A7C15) % (1 << 64)).to_bytes(8, "big"), RELEASE.batch()]


def frameless(n: int) -> list[bytes]:
    return [b"x"]


HASHES = b"\xdd" + (1 << 20).to_bytes(4, "big") + b"\x01" * (1 << 20)
MANY = b"\x92\xcb" + bytes(8) + b"\x91\x92\xacBlockRemoved" + HASHES


def many_hashes(n: int) -> list[bytes]:
    return [b"", n.to_bytes(8, "big"), MANY]


@pytest.mark.parametrize("frames", [small, garbage, jumping, frameless, many_hashes, huge])
async def test_a_hostile_publisher_is_quarantined_and_others_are_not_held_up(
    frames: Callable[[int], list[bytes]],
) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    honest = Publisher(Engine(RELEASE))
    listener = Listener(honest.endpoint, honest.replay_endpoint)
    with hostile(frames) as endpoint:
        victim = Listener(endpoint)
        async with closing(listener, victim, honest):
            if frames is not huge:  # ZeroMQ itself drops those, with their connection
                await until(lambda: victim.follower.state is State.QUARANTINE)
            await heard(honest, listener)
            assert not victim.index.present
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 256 << 10  # KiB
