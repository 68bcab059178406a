"""``warmfleet fit``: an engine profile from a run, for ``warmfleet replay --engine FILE``."""

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

import msgspec
from warmfleet_proto.command import Command
from warmfleet_proto.settings import ConfigError, to_toml

from warmfleet_router.decisions import lines, reader
from warmfleet_router.replay.fitting import Measured, error, fit
from warmfleet_router.replay.profile import Profile
from warmfleet_router.replay.steps import Steps

EPILOG = """\
RUN is a decision log (decision_log = "FILE" in a router's configuration), or the measured steps themselves:
a JSON array, or one object a line, of
  {"seconds": 0.0493, "chunks": [[2048, 0]]}                prompt chunks as [tokens, cached context before]
  {"seconds": 0.0065, "batch": 64, "context": 32768}        a decode step over so many tokens in all

examples:
  warmfleet fit decisions.jsonl --name my-gpu > my-gpu.toml
  warmfleet replay --trace decisions.jsonl --engine my-gpu.toml --policy all
"""
LEAST = 3  # steps
CHUNK_TOKENS = 8192


class TooFew(ConfigError):
    """Steps to learn from. Servers of other engines tell none."""


def configure(parser: ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("run", metavar="RUN", help="a decision log, or a JSON file of steps")
    parser.add_argument("--name", default="fitted", help="of the profile")
    parser.add_argument(
        "--worker", default="", metavar="NAME", help="this worker of a log only (default: all)"
    )
    parser.add_argument(
        "--chunk-tokens",
        type=int,
        metavar="N",
        help=f"most prompt tokens in a step (default: as a log shows, else {CHUNK_TOKENS})",
    )


def run(args: Namespace) -> int:
    if args.chunk_tokens is not None and args.chunk_tokens < 1:
        raise ConfigError(f"--chunk-tokens {args.chunk_tokens}: must be at least 1")
    start = Profile(name=args.name, chunk_tokens=args.chunk_tokens or CHUNK_TOKENS)
    if reader.is_log(args.run):
        found, measured = of_log(args.run, start, args.worker, bool(args.chunk_tokens))
    else:
        measured = _steps(args.run)
        found = _fit(args.run, measured, start)
    print(to_toml(found), end="")
    print(f"{len(measured)} steps, median error {error(found, measured):.1%}", file=sys.stderr)
    return 0


def of_log(
    path: str, start: Profile, worker: str = "", bounded: bool = False
) -> tuple[Profile, list[Measured]]:
    """``bounded``: steps are known to be bounded as ``start`` says, else they are as far as the log shows.
    Raises ConfigError where it does not tell enough."""
    steps = Steps(start.chunk_tokens, worker)
    measured = list(steps.of(reader.read(path)))
    if steps.bound and not bounded:
        start = msgspec.structs.replace(start, chunk_tokens=steps.bound)
        measured = list(Steps(steps.bound, worker).of(reader.read(path)))
    start = _carrying(path, _described(path, start, worker))
    return _fit(path, measured, start), measured


def _described(path: str, start: Profile, worker: str) -> Profile:
    """What the workers tell of themselves."""
    for line in reader.read(path):
        if isinstance(line, lines.Joined) and worker in ("", line.worker, line.status.get("worker")):
            told = line.status
            size, width = told.get("block_bytes", 0), told.get("block_size", 1)
            return msgspec.structs.replace(
                start,
                max_running=told.get("max_running") or start.max_running,
                depth=told.get("depth") or start.depth,
                kv_bytes_per_token=size // width or start.kv_bytes_per_token,
            )
    return start


def _carrying(path: str, start: Profile) -> Profile:
    """What links between workers, and a worker's own lower tiers, have carried on average."""
    told = [line.progress for line in reader.read(path) if isinstance(line, lines.First)]

    def rate(size: str, seconds: str) -> float:
        spent = sum(p.get(seconds, 0.0) for p in told if p.get(size))
        return float(sum(p.get(size, 0) for p in told) / spent) if spent else 0.0

    return msgspec.structs.replace(
        start,
        link_bytes_per_s=rate("pulled_bytes", "pull_s"),
        host_bytes_per_s=rate("loaded_bytes", "load_s"),
    )


def _fit(path: str, measured: list[Measured], start: Profile) -> Profile:
    if len(measured) < LEAST:
        raise TooFew(f"{path}: {len(measured)} steps to learn from; at least {LEAST} are needed")
    try:
        return fit(measured, start)
    except ValueError as wrong:
        raise ConfigError(f"{path}: {wrong}") from None


def _steps(path: str) -> list[Measured]:
    try:
        text = Path(path).read_bytes()
        if text.lstrip().startswith(b"["):
            return msgspec.json.decode(text, type=list[Measured])
        return [msgspec.json.decode(line, type=Measured) for line in text.splitlines() if line.strip()]
    except (OSError, msgspec.MsgspecError) as wrong:
        raise ConfigError(f"{path}: {wrong}") from None


command = Command("make an engine profile from a run", configure, run)
