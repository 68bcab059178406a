"""Which workers and servers there are: listed in the configuration, in a file, or named by DNS.

File and names are watched: who appears in them is taken in, who vanishes from them gets nothing more (what
runs there goes on). What cannot be read or does not answer changes nothing: whoever was known stays.
"""

from typing import Annotated, Literal, NamedTuple

import msgspec
from msgspec import Meta

from warmfleet_router.servers.backend import Backend

_Port = Annotated[int, Meta(ge=0, le=65535)]


class Name(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Workers, or servers that are not ours, behind one name."""

    name: str
    port: _Port = 0  # of all of them: the name has A or AAAA records; 0: SRV records, which tell it
    kind: Literal["worker", "vllm", "sglang", "openai"] = "worker"
    events_port: _Port = 0  # of a server's KV events; 0: none
    replay_port: _Port = 0  # of their replays
    key: str = ""  # its API key


class Discovery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    file: str = ""  # TOML: `workers` and `backends` as in this configuration; read again when it changes
    dns: Annotated[list[Name], Meta(max_length=100)] = []
    dns_s: Annotated[float, Meta(gt=0, le=3600)] = 5.0  # a name is asked again when its TTL is over, or this
    dns_server: str = ""  # HOST:PORT; empty: those of the system


class Found(NamedTuple):
    workers: tuple[str, ...] = ()  # HOST:PORT of their gRPC servers
    backends: tuple[Backend, ...] = ()


def together(found: list[Found]) -> Found:
    """Each address once; the first to name a server says what it is."""
    workers = dict.fromkeys(worker for each in found for worker in each.workers)
    backends: dict[str, Backend] = {}
    for rank in (rank for each in found for backend in each.backends for rank in backend.each_rank()):
        backends.setdefault(rank.address, rank)
    return Found(tuple(workers), tuple(backends.values()))


class SourceView(NamedTuple):
    """One file or name, as the admin page shows it."""

    source: str
    ok: bool
    why: str  # it is not
    found: int  # workers and servers
    failures: int  # since start
