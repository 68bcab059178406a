"""The shape of a subcommand; each package registers its own under ``warmfleet.commands``."""

import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from typing import NamedTuple

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
