"""``python -m tests.process.dying_worker STEP --set ...``: a sim worker that dies at a step of a migration.

Leases live for two seconds here, so that what a dead target leaves behind is seen to be given back.
"""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from warmfleet_worker.transfer import leases, puller, service, shelf, tcp_target, trip
from warmfleet_worker.transfer.haul import PoolHaul
from warmfleet_worker.transfer.peers import Peers

LEASE_TTL_S = 2.0

# By the end that dies, and the step that it does not survive.
STEPS: dict[str, tuple[Any, str]] = {
    "source lease": (service.TransferService, "_lease"),
    "source leased": (service.TransferService, "_response"),
    "source transfer": (shelf.PoolShelf, "fetch"),
    "source checksum": (shelf, "block_sum"),
    "source release": (service.TransferService, "Release"),
    "target grant": (puller.Puller, "begin"),
    "target lease": (puller.Puller, "_lease"),
    "target token check": (trip.Trip, "check"),
    "target transfer": (puller.Puller, "_transfer"),
    "target checksum": (tcp_target.frames, "block_sum"),
    "target commit": (PoolHaul, "landed"),
    "target publish": (puller.Puller, "_settle"),
    "target release": (Peers, "release"),
}


def die(*_: object, **__: object) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def plant(step: str) -> None:
    holder, name = STEPS[step]
    replacement: Callable[..., Any] = die
    setattr(holder, name, replacement)


def main() -> int:
    step, *flags = sys.argv[1:]
    leases.LEASE_TTL_S = LEASE_TTL_S
    if step != "none":
        plant(step)
    from warmfleet_router.cli import main as command

    return command(["worker", *flags])


if __name__ == "__main__":
    raise SystemExit(main())
