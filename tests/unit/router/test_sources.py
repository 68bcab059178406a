"""Where workers and servers are found: settings that are wrong, answers put together."""

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest
from warmfleet_proto.settings import ConfigError
from warmfleet_router.config import RouterConfig, check
from warmfleet_router.discovery import Found, Name, together
from warmfleet_router.discovery.discoverer import Discoverer, sources
from warmfleet_router.discovery.file import read
from warmfleet_router.discovery.names import found
from warmfleet_router.servers.backend import Backend


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"dns": [{"name": "no name"}]}, "discovery.dns[0].name"),
        ({"dns": [{"name": "a.test"}, {"name": "a.test"}]}, "discovery.dns: a name is listed twice"),
        ({"dns": [{"name": "a.test", "events_port": 5557}]}, "discovery.dns[0].kind"),
        ({"dns": [{"name": "a.test", "kind": "openai", "events_port": 5557}]}, "discovery.dns[0].kind"),
        ({"dns": [{"name": "a.test", "kind": "vllm", "replay_port": 1}]}, "discovery.dns[0].replay_port"),
        ({"dns_server": "nowhere"}, "discovery.dns_server"),
        ({"dns_s": 0}, "dns_s"),
        ({"dns": [{"name": "a.test", "port": 65536}]}, "dns[0].port"),
        ({"interval": 1}, "interval"),
        ({"dns": [{"name": "a.test", "kind": "vllm", "key": "k\n"}]}, "discovery.dns[0].key"),
    ],
)
def test_settings_that_are_wrong_are_named(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises((ConfigError, msgspec.ValidationError)) as raised:
        check(msgspec.convert({"discovery": wrong}, RouterConfig))
    assert says in str(raised.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("workers = [1]", "workers"),
        ('workers = ["nowhere"]', "workers[0]: address 'nowhere': expected HOST:PORT"),
        ('workers = ["a:1", "a:1"]', "workers: an address is listed twice"),
        ('backends = [{url = "ftp://a"}]', "backends[0].url"),
        ('worker = ["a:1"]', "worker"),
        ("", "lists neither workers nor backends"),
        ("# being written", "lists neither workers nor backends"),
        ('backends = [{url = "http://a:65536"}]', "backends[0].url"),
        ('backends = [{url = "http://a", key = "\u20ac"}]', "backends[0].key"),
        ('backends = [{url = "http://a", key = "k\\r\\nX: y"}]', "backends[0].key"),
        ('backends = [{url = "http://:::"}]', "backends[0].url"),
        ('backends = [{url = "http://a", kind = "vllm", events = "tcp://a:70000"}]', "backends[0].events"),
        (
            'backends = [{url = "http://a", kind = "vllm", ranks = 2, events = "tcp://a:65535"}]',
            "backends[0].events",
        ),
        (
            'backends = [{url="http://a", kind="vllm", ranks=2}, {url="http://a", kind="vllm", rank=1}]',
            "backends: a url is listed twice",
        ),
        (
            'workers = ["a:1"]\nbackends = [{url = "http://a:1/v1"}]',
            "workers, backends: a:1 is listed in both; our own workers speak gRPC",
        ),
        ('backends = [{url = "http://a"}, {url = "https://a"}]', "backends: a host and port is listed twice"),
        ("workers = " + "[" * 100_000, "not TOML"),
    ],
)
def test_a_file_that_is_wrong_from_the_start_refuses_to_start(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text(text)
    config = msgspec.convert({"discovery": {"file": str(path)}}, RouterConfig)
    check(config)
    with pytest.raises(ConfigError) as raised:
        sources(config.discovery)
    assert str(raised.value).startswith(f"discovery.file: {path}: ")
    assert says in str(raised.value)


def test_a_file_may_list_nobody(tmp_path: Path) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text("workers = []")
    assert read(str(path)) == Found()


def test_a_file_lists_workers_and_servers(tmp_path: Path) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text('workers = ["a:1"]\n[[backends]]\nurl = "http://b:2/v1"\nkey = "k"\n')
    assert read(str(path)) == Found(("a:1",), (Backend(url="http://b:2/v1", key="k"),))


def test_an_address_counts_once_and_the_first_to_name_a_server_says_what_it_is() -> None:
    vllm, plain = Backend(url="http://a:1", kind="vllm"), Backend(url="http://a:1/v1")
    found = together([Found(("x:1", "y:1"), (vllm,)), Found(("y:1", "z:1"), (plain,))])
    assert found == Found(("x:1", "y:1", "z:1"), (vllm,))


def test_a_rank_is_followed_once_whoever_names_it() -> None:
    ranks, one = (Backend(url="http://a:1", kind="vllm", ranks=2), Backend(url="http://a:1", rank=1))
    both = together([Found(backends=(ranks,)), Found(backends=(one,))]).backends
    assert [(backend.address, backend.kind) for backend in both] == [
        ("http://a:1#0", "vllm"),
        ("http://a:1#1", "vllm"),
    ]


class Sourced:
    """A source that is asked at once, and fails as nobody has foreseen the second time."""

    name = "a list"

    def __init__(self) -> None:
        self.looks = 0

    async def look(self) -> tuple[Found, float]:
        self.looks += 1
        if self.looks == 2:
            raise ZeroDivisionError
        return Found((f"a:{self.looks}",)), 0.0


async def test_failures_of_its_own_do_not_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("warmfleet_router.discovery.discoverer.RETRY_S", 0.0)
    told: list[str] = []
    enough = asyncio.Event()

    async def apply(found: Found) -> None:
        told.extend(found.workers)
        if found.workers == ("a:3",):
            raise ZeroDivisionError
        if len(told) == 4:
            enough.set()

    async with Discoverer(Found(), [Sourced()], apply), asyncio.timeout(5):
        await enough.wait()
    assert told[:4] == ["a:1", "a:3", "a:4", "a:5"]


def test_names_of_servers_tell_where_their_events_are() -> None:
    name = Name(name="v.test", kind="vllm", port=8000, events_port=5557, replay_port=5558, key="k")
    assert found(name, ["10.0.0.1:8000", "[::1]:8000"]).backends == (
        Backend(
            url="http://10.0.0.1:8000",
            kind="vllm",
            events="tcp://10.0.0.1:5557",
            replay="tcp://10.0.0.1:5558",
            key="k",
        ),
        Backend(
            url="http://[::1]:8000",
            kind="vllm",
            events="tcp://[::1]:5557",
            replay="tcp://[::1]:5558",
            key="k",
        ),
    )
    assert found(Name(name="w.test"), ["w1.test:50061"]) == Found(("w1.test:50061",))
