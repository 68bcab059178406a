"""A file that lists workers and servers. It is looked at again and again: changes need no signal."""

import asyncio
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType
from warmfleet_proto.settings import ConfigError, load

from warmfleet_router.discovery import Found
from warmfleet_router.discovery.check import check_found
from warmfleet_router.servers.backend import Backend

LOOK_S = 0.5  # a stat
_KEY = "discovery.file"


class _Listed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    workers: Annotated[list[str], Meta(max_length=10_000)] | UnsetType = UNSET
    backends: Annotated[list[Backend], Meta(max_length=10_000)] | UnsetType = UNSET


def read(path: str) -> Found:
    """Raises ConfigError for what is not as it should be."""
    try:
        listed = load(_Listed, path)
    except ConfigError as error:
        raise ConfigError(f"{_KEY}: {error}") from None
    if listed.workers is UNSET and listed.backends is UNSET:  # as while it is written: not the end of a fleet
        raise ConfigError(f"{_KEY}: {path}: lists neither workers nor backends; none are workers = []")
    found = Found(tuple(listed.workers or ()), tuple(listed.backends or ()))
    check_found(found, f"{_KEY}: {path}: ")
    return found


class FileSource:
    def __init__(self, path: str) -> None:
        self.name = f"file {path}"
        self._path = path
        self._stamp: tuple[int, ...] | None = None
        self._found = Found()

    async def look(self) -> tuple[Found, float]:
        """What it lists, and seconds until the next look. Raises ConfigError."""
        stamp = self._looks()
        if stamp != self._stamp:
            self._found = await asyncio.to_thread(read, self._path)
            self._stamp = stamp  # as it was before: written meanwhile, it is read again
        return self._found, LOOK_S

    def _looks(self) -> tuple[int, ...]:
        """Different once it has been written or replaced."""
        try:
            stat = Path(self._path).stat()
        except OSError as error:
            raise ConfigError(f"{_KEY}: {self._path}: {error.strerror}") from None
        return stat.st_ino, stat.st_size, stat.st_mtime_ns
