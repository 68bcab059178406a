"""``warmfleet replay``: a trace through the router's placement, for one policy or all of them."""

import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import get_args

from warmfleet_proto.command import Command
from warmfleet_proto.settings import ConfigError
from warmfleet_proto.settings import load as load_settings

from warmfleet_router.replay import capacity, chart, report
from warmfleet_router.replay.fleet import Fleet, Network, Routers
from warmfleet_router.replay.report import Row
from warmfleet_router.replay.source import Source, source
from warmfleet_router.routing import PolicyName, Routing

POLICIES: tuple[str, ...] = get_args(PolicyName)

EPILOG = """\
The placement, index, cursor, prices and books are the router's own; workers and network are modelled in
virtual time. The same trace, options and seed give the same output, byte for byte.

examples:
  warmfleet replay --trace conversation_blk512.jsonl.gz --policy all --speed 5 --no-decode
  warmfleet replay --trace conversation_blk512.jsonl.gz --engine h200-llama-3-8b --capacity 1750
  warmfleet replay --trace conversation_blk512.jsonl.gz --no-decode --capacity-at 'ttft_p99<10'
  warmfleet replay --trace decisions.jsonl --policy all    # a router's own log: which hits were missed
"""


def configure(parser: ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument(
        "--trace",
        required=True,
        metavar="FILE",
        help=".jsonl or .jsonl.gz, as in the Mooncake traces, or a decision log",
    )
    parser.add_argument(
        "--block-size", type=int, metavar="TOKENS", help="of the trace (default: blkN in its name)"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="play the first N requests only")
    parser.add_argument("--speed", type=float, metavar="X", help="times faster than recorded (default 1)")
    parser.add_argument("--workers", type=int, metavar="N", help="default 8, or as in the decision log")
    parser.add_argument(
        "--capacity", type=int, metavar="BLOCKS", help="of each worker (default 8000, or as in the log)"
    )
    parser.add_argument(
        "--policy", default="cheapest", help=f"all, or some of {', '.join(POLICIES)}, with commas"
    )
    parser.add_argument(
        "--engine",
        metavar="NAME|FILE",
        help="flat (default), h200-llama-3-8b or a TOML profile; default of a log: fitted to its steps",
    )
    parser.add_argument(
        "--block-seconds", type=float, default=0.025, help="a block of prefill, flat engine (default 0.025)"
    )
    parser.add_argument(
        "--host", type=int, default=0, metavar="BLOCKS", help="in each worker's host memory (default 0)"
    )
    parser.add_argument(
        "--eviction",
        choices=("lru", "cost"),
        default="lru",
        help="what devices give up first: the least recently used, or the cheapest to compute (default lru)",
    )
    parser.add_argument(
        "--link", type=float, metavar="GB/s", help="between workers (default: the engine's); 0: nobody pulls"
    )
    parser.add_argument("--no-decode", action="store_true", help="every completion is one token")
    parser.add_argument("--delay", type=float, default=0.0, metavar="S", help="presence events come so late")
    parser.add_argument("--loss", type=float, default=0.0, metavar="SHARE", help="presence events are lost")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a routing setting")
    parser.add_argument(
        "--routers", type=int, default=1, metavar="N", help="over the same workers (default 1)"
    )
    parser.add_argument(
        "--in-turn", action="store_true", help="ask the routers in turn, not by the prompt's beginning"
    )
    parser.add_argument(
        "--capacity-at", metavar="'ROW<X'", help="search the highest speed at which this holds"
    )
    parser.add_argument("--seed", type=int, default=0, help="of all that is random (default 0)")
    parser.add_argument("--json", metavar="FILE", help="write the rows, or the speeds of --capacity-at")
    parser.add_argument("--png", metavar="FILE", help="draw them (needs matplotlib)")


def run(args: Namespace) -> int:
    if args.capacity_at:
        _refuse(args)
    policies = POLICIES if args.policy == "all" else tuple(args.policy.split(","))
    for policy in policies:
        if policy not in POLICIES:
            raise ConfigError(f"--policy {policy!r}: expected all, or some of {', '.join(POLICIES)}")
    played = source(args)
    sets = [*played.sets, *args.set]
    routings = [load_settings(Routing, None, [*sets, f'policy="{policy}"']) for policy in policies]
    play = _player(args, played)
    print("\n".join(played.said), end="\n" if played.said else "")
    if args.capacity_at:
        _capacity(args, routings, play)
        return 0
    rows = [play(routing, 1.0 if args.speed is None else args.speed) for routing in routings]
    print(report.table(rows, played.bounds))
    if args.json:
        Path(args.json).write_bytes(report.to_json(rows))
    if args.png:
        chart.draw(rows, args.png)
    return 0


def _refuse(args: Namespace) -> None:
    """What is no bound, and what a search for a speed has no use for. Raises ConfigError."""
    capacity.parse(args.capacity_at)
    for option in ("speed", "png"):
        if getattr(args, option) is not None:
            raise ConfigError(
                f"--{option} says nothing beside --capacity-at, which searches one speed a policy"
            )


def _capacity(args: Namespace, routings: Sequence[Routing], play: Callable[[Routing, float], Row]) -> None:
    bound = capacity.parse(args.capacity_at)
    speeds = []
    for routing in routings:
        found = capacity.search(bound, partial(play, routing))
        print(f"{routing.policy:<16} {args.capacity_at} up to speed {found:.2f}", flush=True)
        speeds.append(capacity.Speed(routing.policy, args.capacity_at, found))
    if args.json:
        Path(args.json).write_bytes(report.to_json(speeds))


def _player(args: Namespace, played: Source) -> Callable[[Routing, float], Row]:
    trace = played.trace

    def play(routing: Routing, speed: float) -> Row:
        fleet = Fleet(
            routing,
            played.profile,
            trace.block_size,
            played.blocks,
            network=Network(args.delay, args.loss),
            seed=args.seed,
            host_blocks=args.host,
            routers=Routers(args.routers, args.in_turn),
            by_cost=args.eviction == "cost",
        )
        with _Progress(f"{routing.policy} at speed {speed:g}", len(trace.requests)) as progress:
            fleet.run(trace, speed, progress)
        return report.summarise(routing.policy, fleet, trace.span_s / speed)

    return play


class _Progress:
    """A line on a terminal's stderr after two seconds."""

    def __init__(self, what: str, total: int) -> None:
        self._what, self._total = what, total
        self._began = time.monotonic()
        self._shown = False

    def __enter__(self) -> Callable[[int], None]:
        return self._show

    def __exit__(self, *exc: object) -> None:
        if self._shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)

    def _show(self, done: int) -> None:
        if sys.stderr.isatty() and time.monotonic() > self._began + 2:
            self._shown = True
            print(f"\r{self._what}: {done} of {self._total} requests", end="", file=sys.stderr, flush=True)


command = Command("play a recorded trace through the placement code, in virtual time", configure, run)
