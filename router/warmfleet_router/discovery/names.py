"""Names whose DNS records list workers or servers. dnspython is an extra, there where names are used."""

import ipaddress
from collections.abc import Sequence
from typing import Any

import dns.asyncresolver
import dns.exception
import dns.name
import dns.rdatatype
import dns.resolver
from warmfleet_proto.channel import split_address
from warmfleet_proto.settings import ConfigError

from warmfleet_router.discovery import Found, Name
from warmfleet_router.servers.backend import Backend

TIMEOUT_S = 3.0  # for one answer, all servers and repetitions
LEAST_S = 0.5  # between questions, whatever the TTL


class NameSource:
    """A name without an answer changes nothing, and neither does one that names nobody: whoever is really
    gone cannot be reached anyway."""

    def __init__(self, of: Name, longest_s: float, server: str = "") -> None:
        self.name = f"dns {of.name}" + (f" port {of.port}" if of.port else "")
        self._of = of
        self._longest_s = longest_s
        self._server = server
        self._resolver: dns.asyncresolver.Resolver | None = None
        self._answered: set[str] = set()  # kinds of records that there have been

    async def look(self) -> tuple[Found, float]:
        """Who has the name, and seconds until it should be asked again. Raises ConfigError."""
        places: set[str] = set()
        ttl, why = self._longest_s, ""
        for kind in ("A", "AAAA") if self._of.port else ("SRV",):
            try:
                answer = await self._made().resolve(self._of.name, kind, lifetime=TIMEOUT_S)
            except (dns.resolver.NoAnswer, dns.resolver.NXDOMAIN) as error:
                why = why or str(error)
            except (dns.exception.DNSException, OSError) as error:
                why = f"{str(error)[:200] or type(error).__name__}"
                if kind in self._answered or not places:  # many servers fail for a kind that there is none of
                    raise ConfigError(f"{self.name}: {why}") from None
            else:
                self._answered.add(kind)
                places.update(_place(record, self._of.port) for record in answer if not _is_nobody(record))
                ttl = min(ttl, answer.rrset.ttl if answer.rrset is not None else ttl)
        if not places:
            raise ConfigError(f"{self.name}: {why[:200] or 'its records name nobody'}")
        return found(self._of, sorted(places)), max(ttl, LEAST_S)

    def _made(self) -> dns.asyncresolver.Resolver:
        if self._resolver is None:
            try:
                self._resolver = dns.asyncresolver.Resolver(configure=not self._server)
            except dns.resolver.NoResolverConfiguration as error:
                raise ConfigError(f"{self.name}: {error}") from None
            if self._server:
                host, self._resolver.port = split_address(self._server)
                self._resolver.nameservers = [host]
        return self._resolver


def found(of: Name, places: Sequence[str]) -> Found:
    """``places`` are HOST:PORT."""
    if of.kind == "worker":
        return Found(workers=tuple(places))
    backends = []
    for place in places:
        host = place.rpartition(":")[0]
        events = f"tcp://{host}:{of.events_port}" if of.events_port else ""
        replay = f"tcp://{host}:{of.replay_port}" if of.replay_port else ""
        backends.append(
            Backend(url=f"http://{place}", kind=of.kind, events=events, replay=replay, key=of.key)
        )
    return Found(backends=tuple(backends))


def _is_nobody(record: Any) -> bool:
    """RFC 2782: a target of "." says that the service is not there."""
    return bool(record.rdtype == dns.rdatatype.SRV and record.target == dns.name.root)


def _place(record: Any, port: int) -> str:
    if record.rdtype == dns.rdatatype.SRV:
        return f"{record.target.to_text(omit_final_dot=True)}:{record.port}"
    address = ipaddress.ip_address(record.address)
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"
