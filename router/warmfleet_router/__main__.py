"""``python -m warmfleet_router``: the same as ``warmfleet router``."""

import sys

from warmfleet_proto.command import main

from warmfleet_router.app import command

if __name__ == "__main__":
    sys.exit(main(command, "warmfleet-router"))
