"""``python -m warmfleet_worker``: the same as ``warmfleet worker``."""

import argparse
import sys

from warmfleet_proto.settings import ConfigError

from warmfleet_worker.app import command


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="warmfleet-worker", description=command.help)
    command.configure(parser)
    try:
        return command.run(parser.parse_args(argv))
    except ConfigError as error:
        print(f"warmfleet-worker: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
