"""``warmfleet key``: the key that a fleet's routers share, and the key that each of its workers is given."""

import secrets
from argparse import ArgumentParser, Namespace

from warmfleet_proto.command import Command
from warmfleet_proto.grant import FLEET_KEY_BYTES, source_key
from warmfleet_proto.settings import ConfigError, read_key

_EPILOG = """\
Routers sign grants with keys made from the fleet key; a worker can check those on its own blocks, and forge
none on the blocks of others. Keep the fleet key with the routers, and give each worker only its own.

examples:
  (umask 077; warmfleet key > fleet.key)
  (umask 077; warmfleet key --fleet fleet.key --worker w1 > w1.key)
  warmfleet router --set fleet_key_file=fleet.key ...
  warmfleet worker --name w1 --set transfer.key_file=w1.key ...
"""


def configure(parser: ArgumentParser) -> None:
    parser.epilog = _EPILOG
    parser.add_argument("--fleet", metavar="FILE", help="the fleet key; without it a new one is made")
    parser.add_argument("--worker", metavar="NAME", help="whose key to make from it")


def run(arguments: Namespace) -> int:
    """Raises ConfigError."""
    if (arguments.fleet is None) != (arguments.worker is None):
        raise ConfigError("--fleet and --worker go together")
    print(fleet_key().hex() if arguments.fleet is None else _worker_key(arguments).hex())
    return 0


def fleet_key() -> bytes:
    """A new one."""
    return secrets.token_bytes(FLEET_KEY_BYTES)


def _worker_key(arguments: Namespace) -> bytes:
    return source_key(read_key("--fleet", arguments.fleet), arguments.worker)


command = Command("Make the keys that let workers give blocks to each other.", configure, run)
