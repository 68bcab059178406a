"""Recorded traffic: arrivals, lengths and prefix identity, in the format of the public Mooncake traces."""

import gzip
import re
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import IO, NamedTuple, cast

import msgspec
from warmfleet_proto.settings import ConfigError

_MASK = (1 << 64) - 1


class Request(NamedTuple):
    """One recorded request. ``keys`` name its full blocks, each with its prefix, and ``answer`` those after
    them, as far as they are known. A turn of a conversation (None: of none) is sent at ``arrival_s``, or when
    the one before has ended."""

    arrival_s: float
    keys: "array[int]"
    prompt_tokens: int
    completion_tokens: int
    conversation: int | None = None
    answer: Sequence[int] = ()


class Trace(NamedTuple):
    name: str
    block_size: int
    requests: list[Request]

    @property
    def span_s(self) -> float:
        return self.requests[-1].arrival_s if self.requests else 0.0


class _Line(msgspec.Struct):
    timestamp: float  # milliseconds
    input_length: int
    output_length: int
    hash_ids: list[int]


def load(path: str, block_size: int | None = None, limit: int | None = None) -> Trace:
    """A ``.jsonl`` or ``.jsonl.gz`` trace; ``blkN`` in its name is the block size. Raises ConfigError."""
    size = block_size or _block_size(path)
    decoder = msgspec.json.Decoder(_Line)
    requests: list[Request] = []
    try:
        with _open(path) as file:
            for number, line in enumerate(file, 1):
                if limit is not None and number > limit:
                    break
                requests.append(_request(decoder.decode(line), size))
    except (msgspec.MsgspecError, OSError, EOFError) as error:
        raise ConfigError(f"{path}: {error}") from None
    requests.sort(key=lambda r: r.arrival_s)
    return Trace(Path(path).name, size, requests)


def _request(line: _Line, block_size: int) -> Request:
    """Only full blocks have an identity; the id of a partial last one is dropped."""
    full = line.hash_ids[: line.input_length // block_size]
    keys = array("Q", (_spread(i) for i in full))
    return Request(line.timestamp / 1000, keys, max(line.input_length, 1), max(line.output_length, 1))


def _spread(id_: int) -> int:
    """splitmix64 (Steele, Lea, Flood 2014): the small ids of a trace as 64-bit keys without collisions."""
    z = (id_ + 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def _block_size(path: str) -> int:
    found = re.search(r"blk(\d+)", Path(path).name)
    if not found:
        raise ConfigError(f"{path}: name the block size, in the file's name as blkN or with --block-size")
    return int(found.group(1))


def _open(path: str) -> IO[bytes]:
    if path.endswith(".gz"):
        return cast(IO[bytes], gzip.open(path, "rb"))
    return Path(path).open("rb")
