"""The same seed gives the same bytes, in another process too."""

import hashlib
import os
import subprocess
import sys

PLAY = """
from warmfleet_router.replay import report
from warmfleet_router.replay.fleet import Fleet, Network
from warmfleet_router.replay.profile import flat
from warmfleet_router.routing import Routing
from tests.bars.traffic import conversation
trace = conversation(800)
for policy in ("cheapest", "two_choices"):
    fleet = Fleet(Routing(policy=policy), flat(.025, 512), 512, [500] * 4, network=Network(.05, .1), seed=3)
    fleet.run(trace, 2.5)
    print([tuple(o) for o in fleet.outcomes], report.summarise(policy, fleet, 1.0))
"""


def test_no_order_of_hashing_shows_in_a_replay() -> None:
    digests = set()
    for seed in ("1", "2"):
        played = subprocess.run(
            [sys.executable, "-c", PLAY],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        )
        assert len(played.stdout) > 100_000
        digests.add(hashlib.sha256(played.stdout).hexdigest())
    assert len(digests) == 1
