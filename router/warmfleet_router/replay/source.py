"""What is played: a trace on a fleet that options describe, or a decision log on the fleet it tells of."""

import json
from argparse import Namespace
from collections.abc import Callable, Sequence
from math import inf
from pathlib import Path
from typing import NamedTuple

import msgspec
from warmfleet_proto.settings import ConfigError

from warmfleet_router.decisions import reader
from warmfleet_router.replay import fit, report
from warmfleet_router.replay.history import History, history, ladder
from warmfleet_router.replay.profile import Profile, flat, profile_of
from warmfleet_router.replay.report import Bounds
from warmfleet_router.replay.trace import Trace, load

_RANGES: Sequence[tuple[Sequence[str], Callable[[float], bool], str]] = (
    (("speed", "block-seconds"), lambda value: 0 < value < inf, "above 0"),
    (("workers", "capacity", "routers", "limit", "block-size"), lambda value: value >= 1, "at least 1"),
    (("host", "link", "delay"), lambda value: 0 <= value < inf, "at least 0"),
    (("loss",), lambda value: 0 <= value <= 1, "a share, from 0 to 1"),
)
WORKERS, BLOCKS = 8, 8000  # of a fleet that only a trace is known of


class Source(NamedTuple):
    trace: Trace
    blocks: list[int]  # of each worker
    profile: Profile
    bounds: Bounds
    sets: Sequence[str] = ()  # routing settings of the recorded router
    said: Sequence[str] = ()  # lines before the table


def source(args: Namespace) -> Source:
    """Raises ConfigError."""
    _check(args)
    log = reader.is_log(args.trace)
    found = _of_log(args) if log else _of_trace(args)
    if args.link is not None:
        profile = msgspec.structs.replace(found.profile, link_bytes_per_s=args.link * 1e9)
        found = found._replace(profile=profile)
    if not args.no_decode:
        return found
    once = [r._replace(completion_tokens=1) for r in found.trace.requests]
    return found._replace(trace=found.trace._replace(requests=once))


def _check(args: Namespace) -> None:
    """What is said of an option is said before the trace is read, which may take a while."""
    if not Path(args.trace).is_file():
        raise ConfigError(f"--trace {args.trace}: no such file")
    for name in ("json", "png"):
        if (file := getattr(args, name)) is not None and not Path(file).parent.is_dir():
            raise ConfigError(f"--{name} {file}: no such folder")
    for names, holds, wanted in _RANGES:
        for name in names:
            if (value := getattr(args, name.replace("-", "_"))) is not None and not holds(value):
                raise ConfigError(f"--{name} {value}: must be {wanted}")


def _of_trace(args: Namespace) -> Source:
    trace = load(args.trace, args.block_size, args.limit)
    blocks = [args.capacity or BLOCKS] * (args.workers or WORKERS)
    profile = _profile(args.engine or "flat", args.block_seconds, trace.block_size)
    return Source(trace, blocks, profile, report.bounds(trace, sum(blocks) + args.host * len(blocks)))


def _of_log(args: Namespace) -> Source:
    told = history(reader.read(args.trace), args.limit)
    if not told.requests:
        raise ConfigError(f"{args.trace}: a decision log without a placement")
    trace = told.trace(Path(args.trace).name)
    blocks = _blocks(args, told)
    profile, how = _engine(args, trace.block_size)
    bounds = report.bounds(trace, sum(blocks))
    sets = [f"{key}={json.dumps(value)}" for key, value in told.routing.items()]
    said = [*_summary(told), *ladder(*report.bounds(trace, sum(blocks), told.served), told)]
    said.append(f"the same requests on {len(blocks)} modelled workers, {how}:")
    return Source(trace, blocks, profile, bounds, sets, said)


def _engine(args: Namespace, block_size: int) -> tuple[Profile, str]:
    """The engine to play a log on, and where its timings are from. Decisions can be judged without any, so a
    log that tells no steps is played too."""
    if args.engine:
        return _profile(args.engine, args.block_seconds, block_size), f"engine {args.engine}"
    try:
        profile, steps = fit.of_log(args.trace, Profile(name="fitted"))
    except fit.TooFew:
        how = "engine flat, since the log tells no steps (--engine names another)"
        return flat(args.block_seconds, block_size), how
    return profile, f"engine fitted to {len(steps)} of its steps"


def _blocks(args: Namespace, told: History) -> list[int]:
    """Capacity of each worker, as the log tells it unless options say otherwise."""
    known = [blocks for blocks in told.blocks if blocks]
    if not known and args.capacity is None:
        raise ConfigError(f"{args.trace}: tells no worker's capacity; give --capacity")
    if args.capacity is None and args.workers is None:
        return known
    return [args.capacity or known[0]] * (args.workers or len(told.blocks))


def _summary(told: History) -> list[str]:
    lines = [f"{told.placements} placements by {told.policy} in {told.span_s:.0f} s"]
    lines.append(f"replayed, {told.same} of {told.replayed} are the same decisions")
    if told.replayed < told.placements:
        lines.append(f"  (of {told.placements - told.replayed} the log does not tell all that led to them)")
    if told.difference:
        lines.append(f"  first difference: {told.difference}")
    return [*lines, "hit rate of prompt tokens:"]


def _profile(engine: str, block_s: float, block_size: int) -> Profile:
    if engine == "flat":
        return flat(block_s, block_size)
    return profile_of(engine)
