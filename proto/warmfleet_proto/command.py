"""The shape of a subcommand; each package registers its own under ``warmfleet.commands``."""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from typing import NamedTuple


class Command(NamedTuple):
    help: str  # one line
    configure: Callable[[ArgumentParser], None]
    run: Callable[[Namespace], int]  # returns the exit status
