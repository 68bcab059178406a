"""Keeps the router's workers and servers those that its sources name: one task a source."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, Self

from warmfleet_proto import log
from warmfleet_proto.settings import ConfigError
from warmfleet_proto.tasks import cancelled

from warmfleet_router.discovery import Discovery, Found, SourceView, together
from warmfleet_router.discovery.file import FileSource, read

RETRY_S = 1.0  # after a source that cannot be read
_log = logging.getLogger(__name__)

Apply = Callable[[Found], Awaitable[None]]


class Source(Protocol):
    name: str

    async def look(self) -> tuple[Found, float]:
        """What it names, and seconds until the next look. Raises ConfigError."""


class Discoverer:
    """``async with``: ``apply`` has been told all that the sources name, and is told of every change."""

    def __init__(self, listed: Found, sources: Sequence[Source], apply: Apply) -> None:
        self._listed = listed
        self._sources = [_Watched(source) for source in sources]
        self._apply = apply
        self._applying = asyncio.Lock()
        self._applied: Found | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def views(self) -> list[SourceView]:
        return [watched.view for watched in self._sources]

    async def __aenter__(self) -> Self:
        waits = await asyncio.gather(*(watched.look() for watched in self._sources))
        await self._told()
        for watched, wait in zip(self._sources, waits, strict=True):
            name = f"discover {watched.view.source}"
            self._tasks.append(asyncio.create_task(self._follow(watched, wait), name=name))
        return self

    async def __aexit__(self, *_: object) -> None:
        await cancelled(*self._tasks)

    async def _follow(self, watched: "_Watched", wait: float) -> None:
        while True:
            await asyncio.sleep(wait)
            try:
                wait = await watched.look()
                await self._told()
            except Exception:
                _log.exception("following %s failed", watched.view.source)  # ours to mend; it is tried again
                wait = RETRY_S

    async def _told(self) -> None:
        """One change after the other: the next one counts from what this one has left."""
        async with self._applying:
            found = together([self._listed, *(watched.found for watched in self._sources)])
            if found != self._applied:
                await self._apply(found)
                self._applied = found


class _Watched:
    """A source with the last that it has named."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.found = Found()
        self.view = SourceView(source.name, False, "not looked at yet", 0, 0)

    async def look(self) -> float:
        """Seconds until the next one."""
        try:
            found, wait = await self._source.look()
        except ConfigError as error:
            self._fails(str(error))
            return RETRY_S
        count = len(found.workers) + len(found.backends)
        if found != self.found or not self.view.ok:
            log.event(_log, "discovered", source=self.view.source, found=count)
        self.found = found
        self.view = self.view._replace(ok=True, why="", found=count)
        return wait

    def _fails(self, why: str) -> None:
        if why != self.view.why:
            kept = self.view.found
            log.event(
                _log, "discovery failed", level=logging.WARNING, source=self.view.source, why=why, kept=kept
            )
        self.view = self.view._replace(ok=False, why=why, failures=self.view.failures + 1)


def sources(discovery: Discovery) -> list[Source]:
    """Raises ConfigError for a file that is wrong from the start. A name may get its records later."""
    made: list[Source] = []
    if discovery.file:
        read(discovery.file)
        made.append(FileSource(discovery.file))
    if discovery.dns:
        from warmfleet_router.discovery.names import NameSource  # its library is an extra

        made += [NameSource(name, discovery.dns_s, discovery.dns_server) for name in discovery.dns]
    return made
