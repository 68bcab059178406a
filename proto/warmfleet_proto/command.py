"""The shape of a subcommand; each package registers its own under ``warmfleet.commands``.

What runs by a configuration has the same options for it everywhere.
"""

import json
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from warmfleet_proto.settings import ConfigError


class Command(NamedTuple):
    help: str  # one line
    configure: Callable[[ArgumentParser], None]
    run: Callable[[Namespace], int]  # returns the exit status, or raises ConfigError


def main(command: Command, program: str, argv: Sequence[str] | None = None) -> int:
    """The command as a program of its own; the exit status."""
    page = ArgumentParser(program, description=command.help, formatter_class=RawDescriptionHelpFormatter)
    command.configure(page)
    try:
        return command.run(page.parse_args(argv))
    except ConfigError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 2


def add_options(
    parser: ArgumentParser, flags: Mapping[str, str], epilog: str, example: str, insecure: str, **kinds: Any
) -> None:
    """``flags``: keys of the configuration that have an option of their own, with its help; ``kinds``: of
    those, what is no text. ``example`` of a setting; ``insecure``: without what it then listens."""
    parser.epilog = epilog
    add = parser.add_argument
    add("--config", metavar="FILE", help="a TOML file; --print-config shows every key")
    add("--set", metavar="KEY=VALUE", action="append", default=[], help=f"one key, as in {example}")
    for key, says in flags.items():
        add(f"--{key.replace('_', '-')}", dest=key, metavar="VALUE", help=says, **kinds.get(key, {}))
    add("--insecure", action="store_true", help=f"listen beyond loopback without {insecure}")
    add("--print-config", action="store_true", help="print the configuration and exit")


def given(arguments: Namespace, flags: Iterable[str]) -> list[str]:
    """All that the command line sets, as KEY=VALUE."""
    chosen = {key: value for key in flags if (value := getattr(arguments, key)) is not None}
    if arguments.insecure:
        chosen["insecure"] = True
    return [*arguments.set, *(f"{key}={_toml(value)}" for key, value in chosen.items())]


def _toml(value: Any) -> str:
    """Given once, an option that may be repeated is no list."""
    return json.dumps(value[0] if isinstance(value, list) and len(value) == 1 else value)
