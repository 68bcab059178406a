"""``warmfleet COMMAND``: finds its subcommands through the entry points that each package registers.

Only the chosen subcommand is imported, so that a router's machine needs no torch and help is quick.
"""

import argparse
import os
import sys
from importlib import metadata

from warmfleet_proto.command import Command
from warmfleet_proto.settings import ConfigError

_GROUP = "warmfleet.commands"

# One line each, said here so that the list of commands needs none of them imported.
_ABOUT = {
    "up": "start a fleet on this machine and ask it a question",
    "router": "run the router and its OpenAI-compatible gateway",
    "gateway": "run a gateway of its own in front of a router",
    "worker": "run one worker: a model, its engine and its KV cache",
    "kv": "look into a folder of stored KV blocks; export and import prefixes",
    "key": "make the keys that let workers give blocks to each other",
    "breakeven": "when to load, pull or recompute a prefix, in seconds",
    "envoy-config": "write a bootstrap for Envoy, with the router as its endpoint picker",
    "replay": "play recorded traffic, or a router's own decision log, in virtual time",
    "fit": "make an engine profile for the replay from a run",
}

_EPILOG = """\
examples:
  warmfleet up                              two workers, a router, a real model on this machine
  warmfleet router --config router.toml     the router alone, its workers listed in a file
  warmfleet COMMAND --help                  everything about one command
"""


def main(argv: list[str] | None = None) -> int:
    """The exit status: 0, 1 for a failure, 2 for a command line or configuration that cannot be used."""
    arguments = sys.argv[1:] if argv is None else argv
    known = {point.name: point for point in metadata.entry_points(group=_GROUP)}
    chosen = next((word for word in arguments if not word.startswith("-")), "")
    try:
        command = _load(known[chosen]) if chosen in known else None
        parsed = _parser(known, chosen, command).parse_args(arguments)
        status = command.run(parsed) if command else 2
        if sys.stdout is not None:  # as under a supervisor that closes it
            sys.stdout.flush()
        return status
    except ConfigError as error:
        return _fail(str(error))
    except ModuleNotFoundError as error:
        return _missing(chosen, error)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read this has seen enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _load(point: metadata.EntryPoint) -> Command:
    loaded = point.load()
    assert isinstance(loaded, Command), f"{point.value} is not a Command"
    return loaded


def _parser(
    known: dict[str, metadata.EntryPoint], chosen: str, command: Command | None
) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="warmfleet",
        description="Routes each LLM request to the worker that is already warm for it.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"warmfleet {metadata.version('warmfleet')}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name in sorted(known, key=[*_ABOUT, *known].index):
        about = command.help if command and name == chosen else _ABOUT.get(name, "")
        page = commands.add_parser(name, help=about, formatter_class=argparse.RawDescriptionHelpFormatter)
        if command and name == chosen:
            page.description = command.help
            command.configure(page)
    return parser


def _missing(chosen: str, error: ModuleNotFoundError) -> int:
    package = (error.name or "").partition(".")[0]
    if package.startswith("warmfleet_router"):
        raise error  # a broken installation: the traceback says more
    return _fail(f"{chosen} needs {package}, which is not installed: pip install 'warmfleet[worker]'")


def _fail(message: str) -> int:
    print(f"warmfleet: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
