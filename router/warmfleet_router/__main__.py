"""``python -m warmfleet_router``: the same as ``warmfleet router``."""

import argparse
import sys

from warmfleet_proto.settings import ConfigError

from warmfleet_router.app import command


def main() -> int:
    parser = argparse.ArgumentParser(prog="warmfleet-router", description=command.help)
    command.configure(parser)
    try:
        return command.run(parser.parse_args())
    except ConfigError as error:
        print(f"warmfleet-router: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
