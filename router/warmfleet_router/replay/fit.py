"""``warmfleet fit``: an engine profile from a run, for ``warmfleet replay --engine FILE``."""

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

import msgspec
from warmfleet_proto.command import Command
from warmfleet_proto.settings import ConfigError, to_toml

from warmfleet_router.decisions import lines, reader
from warmfleet_router.replay.fitting import Measured, Sample, error, fit
from warmfleet_router.replay.profile import Profile
from warmfleet_router.replay.steps import steps_of

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
        help=f"most prompt tokens in a step (default: as workers told a log, else {Profile().chunk_tokens})",
    )


def run(args: Namespace) -> int:
    if args.chunk_tokens is not None and args.chunk_tokens < 1:
        raise ConfigError(f"--chunk-tokens {args.chunk_tokens}: must be at least 1")
    start = Profile(name=args.name)
    if reader.is_log(args.run):
        found, samples = of_log(args.run, start, args.worker)
    else:
        samples = _steps(args.run)
        found = _fit(args.run, samples, start)
    if args.chunk_tokens:
        found = msgspec.structs.replace(found, chunk_tokens=args.chunk_tokens)
    print(to_toml(found), end="")
    print(f"{len(samples)} steps, median error {error(found, samples):.1%}", file=sys.stderr)
    return 0


def of_log(path: str, start: Profile, worker: str = "") -> tuple[Profile, list[Sample]]:
    """Raises ConfigError where it does not tell enough."""
    samples = list(steps_of(reader.read(path), worker))
    start = _carrying(path, _described(path, start, worker))
    return _fit(path, samples, start), samples


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
                chunk_tokens=told.get("chunk_tokens") or start.chunk_tokens,
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


def _fit(path: str, samples: list[Sample], start: Profile) -> Profile:
    if len(samples) < LEAST:
        raise TooFew(f"{path}: {len(samples)} steps to learn from; at least {LEAST} are needed")
    try:
        return fit(samples, start)
    except ValueError as wrong:
        raise ConfigError(f"{path}: {wrong}") from None


def _steps(path: str) -> list[Sample]:
    try:
        text = Path(path).read_bytes()
        if text.lstrip().startswith(b"["):
            measured = msgspec.json.decode(text, type=list[Measured])
        else:
            measured = [
                msgspec.json.decode(line, type=Measured) for line in text.splitlines() if line.strip()
            ]
        return [each.sample for each in measured]
    except (OSError, msgspec.MsgspecError) as wrong:
        raise ConfigError(f"{path}: {wrong}") from None


command = Command("make an engine profile from a run", configure, run)
