"""One fleet of child processes in the foreground, from the first start to the last end."""

import asyncio
import contextlib
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
from warmfleet_proto.tasks import cancelled

from warmfleet_router.local import launch
from warmfleet_router.local.children import Child, ChildDied, stop
from warmfleet_router.local.greeting import Unanswered, converse

T = TypeVar("T")

_TICK_S = 2.0  # nothing stays silent for longer
_JOIN_S = 60.0  # for ready workers to be healthy at the router
_POLL_S = 0.1


class LocalFleet:
    """What it says goes to stdout, one line at a time."""

    def __init__(self, options: launch.Options) -> None:
        self._options = options
        self._logs = Path(tempfile.mkdtemp(prefix="warmfleet-"))
        self._workers = [self._child(f"worker-{number}") for number in range(1, options.workers + 1)]
        self._router = self._child("router")
        self._start = time.monotonic()

    async def run(self, stopped: asyncio.Event) -> int:
        """Runs the fleet until ``stopped``, or until it cannot go on. Returns the exit status, 0 or 1; no
        child is left."""
        serving = asyncio.create_task(self._serve())
        waiting = asyncio.create_task(stopped.wait())
        try:
            await asyncio.wait({serving, waiting}, return_when=asyncio.FIRST_COMPLETED)
            if serving.done():
                serving.result()
        except (ChildDied, Unanswered) as error:
            _say(f"failed: {error}\nlogs in {self._logs}")
        finally:
            await self._end(serving, waiting)
        if not stopped.is_set():
            return 1
        shutil.rmtree(self._logs, ignore_errors=True)
        _say("stopped")
        return 0

    def _child(self, name: str) -> Child:
        return Child(name, self._logs / f"{name}.log")

    async def _serve(self) -> None:
        """Ends only by an exception."""
        options = self._options
        what = f"{_workers(options.workers)} ({options.engine}, {options.model.name})"
        _say(f"starting {what}; logs in {self._logs}")
        keys = launch.write_keys(self._logs, [child.name for child in self._workers])
        commands = [
            launch.worker_command(options, c.name, i, keys[c.name]) for i, c in enumerate(self._workers)
        ]
        said = await self._ready(self._workers, commands)
        command = launch.router_command(options, [line["grpc"] for line in said], keys[""])
        (line,) = await self._ready([self._router], [command])
        base = f"http://{line['http']}"
        served = await self._patiently(self._joined(base), lambda: "the workers join the router")
        _say(f"{_workers(options.workers)} and a router ready after {self._elapsed():.1f} s")
        await self._patiently(converse(base, served, _say), lambda: "the model is answering")
        _say(_farewell(base, served))
        await self._watch()

    async def _ready(
        self, children: Sequence[Child], commands: Sequence[Sequence[str]]
    ) -> list[dict[str, Any]]:
        """Starts the children and waits for their ready lines. Raises ChildDied."""
        environment = launch.environment(self._options)
        for child, command in zip(children, commands, strict=True):
            await child.start(command, environment)

        def doing() -> str:
            return " | ".join(f"{child.name}: {child.last_line}" for child in children if not child.is_ready)

        async def lines() -> list[dict[str, Any]]:  # of a future of gather's own asyncio would complain
            return await asyncio.gather(*(child.ready() for child in children))

        return await self._patiently(lines(), doing)

    async def _joined(self, base: str) -> str:
        """The served model's name, once all workers are healthy. Raises ChildDied and Unanswered."""
        try:
            async with asyncio.timeout(_JOIN_S), aiohttp.ClientSession(raise_for_status=True) as session:
                while True:
                    healthy = (await _get(session, f"{base}/admin/workers"))["fleet"]["healthy"]
                    models = (await _get(session, f"{base}/v1/models"))["data"]
                    if healthy == len(self._workers) and models:
                        return str(models[0]["id"])
                    self._check_alive()
                    await asyncio.sleep(_POLL_S)
        except (TimeoutError, aiohttp.ClientError) as error:
            self._check_alive()
            raise Unanswered(f"the workers did not join the router: {type(error).__name__} {error}") from None

    def _check_alive(self) -> None:
        for child in [*self._workers, self._router]:
            if child.has_ended:
                raise ChildDied(child.obituary())

    async def _patiently(self, work: Awaitable[T], doing: Callable[[], str]) -> T:
        """Says every two seconds what is being waited for."""
        task = asyncio.ensure_future(work)
        try:
            while not (await asyncio.wait({task}, timeout=_TICK_S))[0]:
                _say(f"[{self._elapsed():3.0f} s] {doing()}")
            return task.result()
        finally:
            task.cancel()

    async def _watch(self) -> None:
        """Says which worker has died. Raises ChildDied when the router or the last worker has."""
        ends = {asyncio.create_task(child.ended()): child for child in [*self._workers, self._router]}
        try:
            while True:
                done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    self._lost(ends.pop(task), left=len(ends) - 1)
        finally:
            for task in ends:
                task.cancel()

    def _lost(self, child: Child, left: int) -> None:
        if child is self._router or not left:
            raise ChildDied(child.obituary())
        _say(f"{child.obituary()}\n{left} of {_workers(len(self._workers))} left")

    async def _end(self, *tasks: asyncio.Task[Any]) -> None:
        await cancelled(*tasks)
        ending = stop([child for child in [self._router, *self._workers] if child.was_started])
        await self._patiently(ending, lambda: "the fleet ends")

    def _elapsed(self) -> float:
        return time.monotonic() - self._start


async def _get(session: aiohttp.ClientSession, url: str) -> dict[str, Any]:
    async with session.get(url) as response:
        found: dict[str, Any] = await response.json()
        return found


def _farewell(base: str, model: str) -> str:
    return f"""
  admin  {base}/admin/
  try    curl {base}/v1/chat/completions -H 'Content-Type: application/json' \\
           -d '{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello"}}]}}'

Ctrl-C ends the fleet."""


def _workers(count: int) -> str:
    return "1 worker" if count == 1 else f"{count} workers"


def _say(text: str) -> None:
    with contextlib.suppress(BrokenPipeError):  # whoever read this has gone; the fleet serves on
        print(text, flush=True)
