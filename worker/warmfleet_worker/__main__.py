"""``python -m warmfleet_worker``: the same as ``warmfleet worker``."""

import sys

from warmfleet_proto.command import main

from warmfleet_worker.app import command

if __name__ == "__main__":
    sys.exit(main(command, "warmfleet-worker"))
