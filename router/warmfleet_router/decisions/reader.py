"""Reads a decision log back: all its files, the oldest first."""

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

import msgspec
from warmfleet_proto.settings import ConfigError

from warmfleet_router.decisions.lines import VERSION, AnyLine, Begin, decode
from warmfleet_router.decisions.writer import numbered


def is_log(path: str) -> bool:
    """Whether the file begins as a decision log does."""
    try:
        with _open(Path(path)) as file:
            return isinstance(decode(file.readline()), Begin)
    except (OSError, EOFError, msgspec.MsgspecError):
        return False


def read(path: str) -> Iterator[AnyLine]:
    """Every line of PATH.N ... PATH.1 and PATH. Raises ConfigError.

    A last line that was cut short is left out: the router may still be writing it.
    """
    for file in reversed(_files(Path(path))):
        yield from _lines(file)


def _files(path: Path) -> list[Path]:
    files = [path]
    while (older := numbered(path, len(files))).exists():
        files.append(older)
    return files


def _lines(path: Path) -> Iterator[AnyLine]:
    try:
        with _open(path) as file:
            for number, text in enumerate(file, 1):
                if not text.endswith(b"\n"):
                    return
                line = decode(text)
                if isinstance(line, Begin) and line.version != VERSION:
                    raise ConfigError(f"{path}:{number}: version {line.version}, not {VERSION}")
                yield line
    except msgspec.MsgspecError as error:
        raise ConfigError(f"{path}:{number}: not a line of a decision log: {error}") from None
    except (OSError, EOFError) as error:
        raise ConfigError(f"{path}: {error}") from None


def _open(path: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb"))
