"""What single values of workers, servers and where they are found cannot show. All raise ConfigError."""

import re
from collections.abc import Sequence
from importlib.util import find_spec

from warmfleet_proto.channel import split_address
from warmfleet_proto.settings import ConfigError

from warmfleet_router.discovery import Discovery, Found, Name
from warmfleet_router.servers import backend

_NAME = re.compile(r"(?!.{254})([A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?\.)*[A-Za-z0-9_-]{1,63}\.?")


def check_found(found: Found, before: str = "") -> None:
    """``before`` stands before the key's name."""
    for number, address in enumerate(found.workers):
        check_address(f"{before}workers[{number}]", address)
    _check_once(f"{before}workers: an address", found.workers)
    for number, server in enumerate(found.backends):
        backend.check(f"{before}backends[{number}]", server)
    ranks = [rank for server in found.backends for rank in server.each_rank()]
    _check_once(f"{before}backends: a url", [rank.address for rank in ranks])
    names = [rank.address.partition("//")[2] for rank in ranks]  # by which pages and metrics tell them apart
    if both := sorted(set(found.workers).intersection(names)):
        raise ConfigError(
            f"{before}workers, backends: {both[0]} is listed in both; our own workers speak gRPC"
        )
    _check_once(f"{before}backends: a host and port", names)


def check_discovery(discovery: Discovery) -> None:
    if discovery.dns and find_spec("dns") is None:
        raise ConfigError("discovery.dns: needs dnspython; pip install 'warmfleet[dns]'")
    if discovery.dns_server:
        check_address("discovery.dns_server", discovery.dns_server)
    for number, name in enumerate(discovery.dns):
        _check_name(f"discovery.dns[{number}]", name)
    _check_once("discovery.dns: a name", [(name.name, name.port) for name in discovery.dns])


def check_address(key: str, address: str) -> None:
    try:
        split_address(address)
    except ConfigError as error:
        raise ConfigError(f"{key}: {error}") from None


def _check_name(key: str, name: Name) -> None:
    if not _NAME.fullmatch(name.name):
        raise ConfigError(f"{key}.name: {name.name!r} is no DNS name")
    backend.check_key(key, name.key)
    if name.kind == "worker" and (name.events_port or name.key):
        raise ConfigError(f"{key}.kind: events_port and key are for servers that are not ours")
    if name.kind == "openai" and name.events_port:
        raise ConfigError(f"{key}.kind: events need vllm or sglang")
    if name.replay_port and not name.events_port:
        raise ConfigError(f"{key}.replay_port: there are no events to replay")


def _check_once(what: str, values: Sequence[object]) -> None:
    if len(set(values)) < len(values):
        raise ConfigError(f"{what} is listed twice")
