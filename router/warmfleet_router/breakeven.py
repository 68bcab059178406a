"""``warmfleet breakeven``: seconds to recompute a prefix, or to load it from host, disk or a peer, and where
the one becomes cheaper than the other."""

import asyncio
import re
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Sequence
from math import inf
from typing import NamedTuple

from warmfleet_proto.command import Command
from warmfleet_proto.settings import ConfigError, load, read_key

from warmfleet_router.config import RouterConfig
from warmfleet_router.measure import measure
from warmfleet_router.replay.profile import Profile, profile_of

LENGTHS = [1024 << i for i in range(8)]  # tokens: 1k to 128k
_DISK = 7e9  # bytes a second
_UNITS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_RATE = re.compile(r"([0-9]*\.?[0-9]+)\s*([kMGT]?)(B|b)(?:it)?/s")

_EPILOG = """\
Recomputing is the fitted engine's prefill, in its chunks, on an idle GPU; loading is bytes over rate plus
latency. Rates: 12.5GB/s, or 100Gb/s in bits. Measured are prefill and, with --peer, its link; rates that were
neither measured nor given nor in FILE are marked as assumed.

examples:
  warmfleet breakeven --model llama-3-8b --gpu h200 --link 12.5GB/s
  warmfleet breakeven --engine my-gpu.toml --link 10Gb/s --latency-ms 5
  warmfleet breakeven --measure 127.0.0.1:50061 --peer 127.0.0.1:50062 --fleet-key fleet.key
  warmfleet breakeven --measure w1.example:50061 --config router.toml --host 24GB/s --link 100Gb/s
"""


class Way(NamedTuple):
    """One way to come by KV."""

    name: str
    bytes_per_s: float
    latency_s: float = 0.0
    assumed: bool = False  # neither given nor measured, beside figures that were

    def seconds(self, profile: Profile, tokens: int) -> float:
        return self.latency_s + profile.bring_s(tokens, self.bytes_per_s)


def recompute_s(profile: Profile, tokens: int) -> float:
    """Prefill of a prompt, a chunk at a time."""
    seconds, done = 0.0, 0
    while done < tokens:
        chunk = min(profile.chunk_tokens, tokens - done)
        seconds += profile.prefill_base + profile.chunk_s(chunk, done)
        done += chunk
    return seconds


def made_bytes_per_s(profile: Profile, tokens: int) -> float:
    """How fast recomputing makes KV: a slower link loses against it."""
    return tokens * profile.kv_bytes_per_token / recompute_s(profile, tokens)


def crossing(profile: Profile, way: Way) -> int | None:
    """The shortest prefix in tokens that takes less time to load than to recompute; None: none is.

    What recomputing costs a token only grows with the length, so above the crossing loading stays ahead.
    """
    most = LENGTHS[-1]
    if way.seconds(profile, most) >= recompute_s(profile, most):
        return None
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        if way.seconds(profile, middle) < recompute_s(profile, middle):
            high = middle
        else:
            low = middle
    return high


def table(profile: Profile, ways: list[Way]) -> str:
    """A row a length; the quickest way is starred."""
    heads = ["tokens", "GB", "recompute", *(way.name for way in ways), "makes KV at"]
    lines = ["".join(f"{head:>13}" for head in heads)]
    if any(way.assumed for way in ways):
        marks = ["", "", "", *("(assumed)" if way.assumed else "" for way in ways)]
        lines.append("".join(f"{mark:>13}" for mark in marks))
    for tokens in LENGTHS:
        times = [recompute_s(profile, tokens), *(way.seconds(profile, tokens) for way in ways)]
        cells = [f"{_seconds(s)}{'*' if s == min(times) else ' '}" for s in times]
        size = f"{tokens * profile.kv_bytes_per_token / 1e9:.2f}"
        made = f"{made_bytes_per_s(profile, tokens) / 1e9:.2f} GB/s"
        lines.append("".join(f"{cell:>13}" for cell in [f"{tokens >> 10}k", size, *cells, made]))
    return "\n".join(lines)


def verdict(profile: Profile, way: Way) -> str:
    """One sentence."""
    rate = f"{way.name} at {way.bytes_per_s / 1e9:g} GB/s{' (assumed)' if way.assumed else ''}"
    found = crossing(profile, way)
    if found is None:
        return f"{rate}: recomputing is quicker up to {LENGTHS[-1] >> 10}k tokens"
    if found == 1:
        return f"{rate}: loading is quicker, however short the prefix"
    return f"{rate}: loading is quicker from {found:,} tokens on"


def configure(parser: ArgumentParser) -> None:
    parser.epilog = _EPILOG
    parser.add_argument("--model", default="llama-3-8b", help="default llama-3-8b")
    parser.add_argument("--gpu", default="h200", help="default h200")
    parser.add_argument("--engine", metavar="FILE", help="a TOML profile, as `warmfleet fit` makes them")
    parser.add_argument("--measure", metavar="HOST:PORT", help="a running worker instead of a profile")
    parser.add_argument(
        "--peer", metavar="HOST:PORT", default="", help="another, to pull from; with --measure"
    )
    parser.add_argument("--fleet-key", metavar="FILE", help="the key of their fleet; with --peer")
    parser.add_argument(
        "--config", metavar="FILE", help="the router's TOML file, for its tls; with --measure"
    )
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], help="one key of it, as tls.key=FILE"
    )
    parser.add_argument("--link", metavar="RATE", help="to a peer; default: the profile's")
    parser.add_argument("--host", metavar="RATE", help="from pinned memory; default: the profile's")
    parser.add_argument("--disk", metavar="RATE", help="default 7GB/s: a fast NVMe drive")
    parser.add_argument("--latency-ms", type=float, default=1.0, metavar="MS", help="of a pull; default 1")


def run(arguments: Namespace) -> int:
    """Raises ConfigError."""
    if not 0 <= arguments.latency_ms < inf:
        raise ConfigError(f"--latency-ms {arguments.latency_ms:g}: must be at least 0")
    if arguments.peer and not arguments.measure:
        raise ConfigError("--peer: is measured, so --measure HOST:PORT is needed as well")
    shipped = profile_of(f"{arguments.gpu}-{arguments.model}")
    own = [profile_of(arguments.engine)] if arguments.engine else []
    if arguments.measure:
        own.insert(0, _measured(arguments))
    profile = own[0] if own else shipped
    ways = _ways(arguments, own, shipped)
    print(f"{profile.name}: seconds until the KV of a prefix is on the device\n")
    print(table(profile, ways), end="\n\n")
    for way in ways:
        print(verdict(profile, way))
    slow, fast = (made_bytes_per_s(profile, n) / 1e9 for n in (LENGTHS[-1], LENGTHS[0]))
    print(f"a link below {slow:.1f} GB/s loses up to 128k tokens; at {fast:.1f} GB/s it wins from 1k on")
    return 0


def _ways(arguments: Namespace, own: Sequence[Profile], shipped: Profile) -> list[Way]:
    """Each by the rate that was given, else that of the first of one's ``own`` profiles that knows it, else
    it is assumed to be that of the ``shipped`` one. Raises ConfigError."""

    def way(name: str, option: str, known: Iterable[float], otherwise: float, latency_s: float = 0.0) -> Way:
        given, found = getattr(arguments, option), next(filter(None, known), 0.0)
        rate = _rate(f"--{option}", given, found or otherwise)
        return Way(name, rate, latency_s, assumed=bool(own) and not (given or found))

    own_latency = arguments.peer and not arguments.link
    latency_s = own[0].link_latency if own_latency else arguments.latency_ms / 1e3
    return [
        way("host", "host", (each.host_bytes_per_s for each in own), shipped.host_bytes_per_s),
        way("disk", "disk", (), _DISK),
        way("peer", "link", (each.link_bytes_per_s for each in own), shipped.link_bytes_per_s, latency_s),
    ]


def _measured(arguments: Namespace) -> Profile:
    """Raises ConfigError."""
    if arguments.peer and not arguments.fleet_key:
        raise ConfigError("--peer: --fleet-key is needed as well: workers give blocks to whoever has a grant")
    key = read_key("--fleet-key", arguments.fleet_key) if arguments.fleet_key else None
    tls = load(RouterConfig, arguments.config, arguments.set).tls
    return asyncio.run(measure(arguments.measure, arguments.peer, key, tls))


def _rate(option: str, text: str | None, default: float) -> float:
    """Bytes a second. Raises ConfigError."""
    if text is None:
        if not default:
            raise ConfigError(f"{option}: the profile has no such rate")
        return default
    found = _RATE.fullmatch(text.strip())
    if found is None or not float(found[1]):
        raise ConfigError(f"{option} {text!r}: expected a rate such as 12.5GB/s or 100Gb/s")
    return float(found[1]) * _UNITS[found[2]] / (8 if found[3] == "b" else 1)


def _seconds(value: float) -> str:
    return f"{value * 1e3:.2f} ms" if value < 1 else f"{value:.2f} s"


command = Command("Say when to load, pull or recompute a prefix, in seconds.", configure, run)
