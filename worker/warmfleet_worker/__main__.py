"""``python -m warmfleet_worker``: the same as ``warmfleet worker``."""

import argparse
import sys

from warmfleet_worker.app import command


def main() -> int:
    parser = argparse.ArgumentParser(prog="warmfleet-worker", description=command.help)
    command.configure(parser)
    return command.run(parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
