"""A server that is not ours, as it is configured."""

import re
from collections.abc import Iterable
from typing import Annotated, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta
from warmfleet_proto.settings import ConfigError

_URL = re.compile(r"https?://[A-Za-z0-9._\-\[\]:]+(/[A-Za-z0-9._~\-/]*)?")
_ENDPOINT = re.compile(r"tcp://(\*|[A-Za-z0-9._\-\[\]:]+):\d{1,5}")

Kind = Literal["vllm", "sglang", "openai"]


class Backend(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    url: str  # http://HOST:PORT; /v1 is added
    kind: Kind = "openai"  # openai: whatever speaks the API
    events: str = ""  # of its KV events, tcp://HOST:PORT; tcp://*:PORT where the engine connects
    replay: str = ""  # of their replays
    key: str = ""  # its API key
    blocks: Annotated[int, Meta(ge=0, le=1 << 26)] = 0  # of its cache; 0: as it tells
    # Data-parallel engines behind the one address (vLLM): each has a cache of its own, and its events at the
    # endpoints above with its rank added to the port. ``rank``: this one alone, with just these endpoints.
    ranks: Annotated[int, Meta(ge=1, le=256)] = 1
    rank: Annotated[int, Meta(ge=-1, le=255)] = -1  # -1: none

    @property
    def base(self) -> str:
        return self.url.rstrip("/").removesuffix("/v1")

    @property
    def address(self) -> str:
        """Its name in the fleet: a rank is a worker."""
        return self.base if self.rank < 0 else f"{self.base}#{self.rank}"

    def each_rank(self) -> list["Backend"]:
        if self.ranks == 1:
            return [self]
        return [
            msgspec.structs.replace(
                self, ranks=1, rank=n, events=_shifted(self.events, n), replay=_shifted(self.replay, n)
            )
            for n in range(self.ranks)
        ]

    @property
    def headers(self) -> dict[str, str]:
        return bearer(self.key) if self.key else {}


def _shifted(endpoint: str, by: int) -> str:
    place, _, port = endpoint.rpartition(":")
    return f"{place}:{int(port) + by}" if endpoint else ""


def keys_of(backends: Iterable[Backend]) -> dict[str, str]:
    """API keys by base URL, of those that want one."""
    return {backend.base: backend.key for backend in backends if backend.key}


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def check(key: str, backend: Backend) -> None:
    """Raises ConfigError."""
    if not _URL.fullmatch(backend.url) or not _is_place(backend.url):
        raise ConfigError(f"{key}.url: expected http://HOST:PORT, got {backend.url!r}")
    for name in ("events", "replay"):
        value = getattr(backend, name)
        if value and not _ENDPOINT.fullmatch(value):
            raise ConfigError(f"{key}.{name}: expected tcp://HOST:PORT, got {value!r}")
        if value and int(value.rpartition(":")[2]) + backend.ranks - 1 > 65535:
            raise ConfigError(f"{key}.{name}: a port beyond 65535 in {value!r}")
    check_key(key, backend.key)
    if backend.ranks > 1 and backend.rank >= 0:
        raise ConfigError(f"{key}.rank: either one rank or the number of all ranks")
    if (backend.ranks > 1 or backend.rank >= 0) and backend.kind != "vllm":
        raise ConfigError(f"{key}.ranks: only of vllm")
    if backend.replay and not backend.events:
        raise ConfigError(f"{key}.replay: there are no events to replay")
    if backend.events and backend.kind == "openai":
        raise ConfigError(f"{key}.kind: events need vllm or sglang")
    if backend.events:
        _check_installed(key)


def check_key(key: str, value: str) -> None:
    """It goes into a header. Raises ConfigError, which does not show it."""
    if not (value.isascii() and value.isprintable()):
        raise ConfigError(f"{key}.key: expected printable ASCII")


def _is_place(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _check_installed(key: str) -> None:
    try:
        import zmq  # noqa: F401
    except ImportError:
        raise ConfigError(f"{key}.events: need pyzmq; pip install 'warmfleet[engines]'") from None
