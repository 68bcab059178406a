"""What a router whose clients come through Envoy cannot serve. Envoy's stubs are not needed here."""

from collections.abc import Sequence

from warmfleet_proto.settings import ConfigError

from warmfleet_router.servers.backend import Backend
from warmfleet_router.servers.catalogue import place_of


def check_listed(backends: Sequence[Backend], found: bool) -> None:
    """``found``: there are servers beside these. Raises ConfigError."""
    for backend in backends:
        _check_same(backends[0], backend)
        if found:
            check_plain(backend)


def check_plain(backend: Backend) -> None:
    """Raises ConfigError."""
    if is_https(backend):
        raise ConfigError(
            f"backends: {backend.url}: Envoy can use https only without discovery; list all servers, "
            "or put what ends TLS before this one"
        )


def is_https(backend: Backend) -> bool:
    return place_of(backend.base).tls


def _check_same(first: Backend, other: Backend) -> None:
    """Envoy tries the next server with the headers that were meant for the one before, keys among them."""
    same_prefix = place_of(first.base).prefix == place_of(other.base).prefix
    for name, same in (("key", first.key == other.key), ("base path", same_prefix)):
        if not same:
            raise ConfigError(
                f"backends: {first.url} and {other.url}: behind one Envoy (picker) all have the same {name}, "
                "since it goes on to the next one with what was meant for the first; take a router and an "
                f"Envoy for each {name}"
            )
