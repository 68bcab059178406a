"""What a data plane is told in the place of a server's name."""

import asyncio
import socket
from typing import Any

import pytest
from warmfleet_router.servers import addresses
from warmfleet_router.servers.addresses import Addresses


class Dns:
    """In the place of the loop's; ``told`` are addresses, an error where there are none."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.told: list[str] = []
        self.asked: list[str] = []
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", self.getaddrinfo)

    async def getaddrinfo(self, host: str, port: int, **_: Any) -> list[tuple[Any, ...]]:
        self.asked.append(host)
        if not self.told:
            raise socket.gaierror
        families = {True: socket.AF_INET6, False: socket.AF_INET}
        return [(families[":" in each], 1, 6, "", (each, port)) for each in self.told]


@pytest.fixture
async def dns(monkeypatch: pytest.MonkeyPatch) -> Dns:
    return Dns(monkeypatch)


@pytest.mark.parametrize(
    ("endpoint", "is_"),
    [("10.0.0.1:80", "10.0.0.1:80"), ("[0:0::1]:80", "[::1]:80"), ("[2001:DB8::1]:8", "[2001:db8::1]:8")],
)
async def test_an_address_is_itself_as_envoy_writes_it(dns: Dns, endpoint: str, is_: str) -> None:
    assert await Addresses().of(endpoint) == (is_,)
    assert not dns.asked


async def test_a_name_is_asked_once_and_its_addresses_are_in_order(dns: Dns) -> None:
    known, dns.told = Addresses(), ["10.0.0.2", "::1", "10.0.0.1", "10.0.0.2"]
    told = await asyncio.gather(known.of("a:80"), known.of("a:80"))
    assert told == [("10.0.0.1:80", "10.0.0.2:80")] * 2
    assert await known.of("a:80") == told[0]
    assert dns.asked == ["a"]
    dns.told = ["::2"]
    assert await known.of("b:81") == ("[::2]:81",)


async def test_what_was_known_is_told_while_it_is_asked_anew_and_when_dns_fails(
    dns: Dns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(addresses, "FRESH_S", -1.0)
    known, dns.told = Addresses(), ["10.0.0.1"]
    assert await known.of("a:80") == ("10.0.0.1:80",)
    dns.told = ["10.0.0.2"]
    assert await known.of("a:80") == ("10.0.0.1:80",)
    await turns()
    dns.told = []
    assert await known.of("a:80") == ("10.0.0.2:80",)
    await turns()
    assert await known.of("a:80") == ("10.0.0.2:80",)
    assert await known.of("unknown:80") == ()
    await known.close()


async def test_no_more_names_are_remembered_than_there_is_room_for(
    dns: Dns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(addresses, "MAX_NAMES", 2)
    known, dns.told = Addresses(), ["10.0.0.1"]
    for name in ("a:1", "b:1", "c:1", "a:1"):
        await known.of(name)
    assert dns.asked == ["a", "b", "c", "a"]


async def test_who_stops_waiting_does_not_stop_the_question(dns: Dns) -> None:
    known, dns.told = Addresses(), ["10.0.0.1"]
    first = asyncio.create_task(known.of("a:80"))
    second = asyncio.create_task(known.of("a:80"))
    await asyncio.sleep(0)
    first.cancel()
    assert await second == ("10.0.0.1:80",)
    assert dns.asked == ["a"]


async def turns() -> None:
    for _ in range(3):
        await asyncio.sleep(0)
