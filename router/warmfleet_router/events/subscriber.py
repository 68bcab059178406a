"""Listens to one engine's KV events over ZeroMQ, for one worker of the roster.

Needs pyzmq (``warmfleet[engines]``). Engines bind where their endpoint has a wildcard and connect
where it names a host: for those that connect, give the wildcard here.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import zmq
import zmq.asyncio
from warmfleet_proto import log
from zmq.utils.monitor import recv_monitor_message

from warmfleet_router.events.follower import AskReplay, Follower, State, Told
from warmfleet_router.events.wire import PAYLOAD_BYTES
from warmfleet_router.index.cursor import Instruction

_log = logging.getLogger(__name__)

TICK_S = 0.25
BIND_S = 10.0  # a port that stays taken for longer is an error
SLICE_S = 0.5e-3  # of taking in events before others get their turn
LIVE_MESSAGES = 64  # of up to PAYLOAD_BYTES each, read ahead
REPLAY_MESSAGES = 512
MAX_REPLAYED = 50_000  # batches of one answer
_END = -1
_DISCONNECTED = zmq.Event.DISCONNECTED | zmq.Event.CLOSED | zmq.Event.CONNECT_RETRIED


class Subscriber:
    """``run`` until cancelled. ``sink`` performs an instruction on the index; ``clock`` in seconds.

    ``settled`` is called once all is known that the engine remembers, or it is known that it does not tell;
    and again after that.
    """

    def __init__(
        self,
        endpoint: str,
        replay: str,
        follower: Follower,
        sink: Callable[[Instruction], None],
        clock: Callable[[], float],
        name: str,
        settled: Callable[[], None] = lambda: None,
    ) -> None:
        self._endpoint = endpoint
        self._replay = replay  # "": none
        self._follower = follower
        self._sink = sink
        self._clock = clock
        self._name = name
        self._settled = settled
        self._turn = asyncio.Lock()  # the follower's iterators do not mix
        self._context = zmq.asyncio.Context.instance()
        self._replaying: asyncio.Task[None] | None = None
        self._parts = asyncio.TaskGroup()  # of listening: none of them may end unnoticed

    async def run(self) -> None:
        """Raises zmq.ZMQError for an endpoint that is none, and whatever goes wrong in any part of it."""
        while True:
            try:
                await self._listen()
            except BaseExceptionGroup as failed:
                raise failed.exceptions[0] from None
            log.event(
                _log, "events quarantined", level=logging.WARNING, worker=self._name, why=self._follower.why
            )
            while self._follower.state is State.QUARANTINE:  # without a socket: a flood costs nothing
                await asyncio.sleep(TICK_S)
                await self._take(self._follower.tick(self._clock()))

    async def _listen(self) -> None:
        """Follows the events until they make no sense any more (QUARANTINE)."""
        with closing(self._socket(zmq.SUB, LIVE_MESSAGES)) as socket:
            await _open(socket, self._endpoint)
            socket.subscribe(b"")
            async with asyncio.TaskGroup() as self._parts:
                others = [self._parts.create_task(part) for part in (self._tick(), self._watch(socket))]
                await self._take(self._follower.begin(self._clock()))
                while self._follower.state is not State.QUARANTINE:
                    frames = await socket.recv_multipart()
                    seq, payload = _numbered(frames)
                    await self._take(self._follower.receive(seq, payload, self._clock()))
                for task in (*others, self._replaying):
                    if task is not None:
                        task.cancel()

    def _socket(self, kind: int, messages: int) -> zmq.asyncio.Socket:
        socket = self._context.socket(kind)
        socket.linger = 0
        socket.rcvhwm = messages
        socket.setsockopt(zmq.MAXMSGSIZE, PAYLOAD_BYTES)
        socket.setsockopt(zmq.RECONNECT_IVL, 100)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 2000)
        socket.setsockopt(zmq.HEARTBEAT_IVL, 2000)  # a half-open connection is found in three of them
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 6000)
        return socket

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            await self._take(self._follower.tick(self._clock()))

    async def _watch(self, socket: zmq.asyncio.Socket) -> None:
        """Tells the follower of broken connections."""
        monitor = socket.get_monitor_socket()
        try:
            while True:
                event = await recv_monitor_message(monitor)
                if event["event"] & _DISCONNECTED:
                    async with self._turn:
                        self._follower.disconnected()
        finally:
            socket.disable_monitor()  # tells the monitor, and waits for ever if that is closed
            monitor.close()

    async def _take(self, told: Iterator[Told]) -> None:
        async with self._turn:
            since = self._clock()
            for each in told:
                if isinstance(each, AskReplay):
                    self._ask(each.after)
                else:
                    self._sink(each)
                if self._clock() - since > SLICE_S:
                    await asyncio.sleep(0)
                    since = self._clock()
        if self._follower.state is not State.REPLAY:
            self._settled()
        await asyncio.sleep(0)  # a socket with messages waiting does not give way by itself

    # ---- replay

    def _ask(self, after: int) -> None:
        """A new request on a socket of its own: answers to an older one cannot mix with it."""
        if self._replaying is not None:
            self._replaying.cancel()
        self._replaying = self._parts.create_task(self._answers(after), name=f"replay {self._name}")

    async def _answers(self, after: int) -> None:
        log.event(_log, "event replay", worker=self._name, after=after)
        with closing(self._socket(zmq.DEALER, REPLAY_MESSAGES)) as socket:
            await _open(socket, self._replay)
            await socket.send_multipart([b"", after.to_bytes(8, "big")])
            for _ in range(MAX_REPLAYED):
                seq, payload = _numbered(await socket.recv_multipart())
                if seq == _END:
                    break
                await self._take(self._follower.replayed(seq, payload, self._clock()))
        await self._take(self._follower.replay_ended(self._clock()))


async def _open(socket: zmq.asyncio.Socket, endpoint: str) -> None:
    """A port that was just let go is let go by ZeroMQ's own thread, a moment later: waited for."""
    if "*" not in endpoint:
        socket.connect(endpoint)
        return
    until = time.monotonic() + BIND_S
    while True:
        try:
            socket.bind(endpoint)
            return
        except zmq.ZMQError as error:
            if error.errno != zmq.EADDRINUSE or time.monotonic() > until:
                raise
        await asyncio.sleep(TICK_S)


def _numbered(frames: list[bytes]) -> tuple[int, bytes]:
    """Read from the end: a live batch begins with its topic, a replayed one may not; -2 for no number."""
    if len(frames) < 2 or len(frames[-2]) != 8:
        return -2, b""
    return int.from_bytes(frames[-2], "big", signed=True), frames[-1]
