"""``python -m tests.process.deadly STEP FOLDER COMMAND --set ...``: where a step of a migration kills.

Whichever program of the FOLDER comes to the step first kills the process that FOLDER/victim names by id, or
itself where there is no such file. What the dead leave behind is given back sooner here.
"""

import os
import select
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from warmfleet_router.grant import Granter
from warmfleet_worker import sessions
from warmfleet_worker.transfer import leases, puller, service, shelf, tcp_target, trip
from warmfleet_worker.transfer.haul import PoolHaul
from warmfleet_worker.transfer.peers import Peers

LEASE_TTL_S = 2.0
REATTACH_S = 1.0

# By the end that comes to it, and the step.
STEPS: dict[str, tuple[Any, str]] = {
    "router grant": (Granter, "grant"),
    "source lease": (service.TransferService, "_lease"),
    "source leased": (service.TransferService, "_response"),
    "source transfer": (shelf.PoolShelf, "fetch"),
    "source checksum": (shelf, "block_sum"),
    "source release": (leases.Leases, "release"),
    "target grant": (puller.Puller, "begin"),
    "target lease": (puller.Puller, "_lease"),
    "target token check": (trip.Trip, "check"),
    "target transfer": (puller.Puller, "_transfer"),
    "target checksum": (tcp_target.frames, "block_sum"),
    "target commit": (PoolHaul, "landed"),
    "target publish": (puller.Puller, "_settle"),
    "target release": (Peers, "release"),
}


def plant(step: str, folder: Path) -> None:
    holder, name = STEPS[step]
    harmless: Callable[..., Any] = getattr(holder, name)

    def deadly(*args: Any, **named: Any) -> Any:
        with suppress(FileExistsError):
            (folder / "killed").touch(exist_ok=False)
            kill(folder / "victim")
        return harmless(*args, **named)

    setattr(holder, name, deadly)


def kill(victim: Path) -> None:
    """It is dead on return."""
    process = os.pidfd_open(int(victim.read_text()) if victim.exists() else os.getpid())
    signal.pidfd_send_signal(process, signal.SIGKILL)
    select.select([process], [], [])
    os.close(process)


def main() -> int:
    step, folder, *command = sys.argv[1:]
    leases.LEASE_TTL_S = LEASE_TTL_S
    sessions.REATTACH_S = REATTACH_S
    if step != "none":
        plant(step, Path(folder))
    from warmfleet_router.cli import main as warmfleet

    return warmfleet(command)


if __name__ == "__main__":
    raise SystemExit(main())
