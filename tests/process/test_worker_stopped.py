"""SIGSTOP of a worker: it is there and does not answer, and no connection breaks."""

import os
import signal
from collections.abc import Iterator

import pytest

from tests.process.programs import Processes, metric, processes, until
from tests.process.test_worker_killed import Reader, ask, begun, state_of

STEP_S = 0.01


@pytest.fixture
def sims(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    with processes(tmp_path_factory.mktemp("logs"), 3, timing__step_s=STEP_S) as running:
        yield running


def test_no_request_waits_for_a_worker_that_is_stopped(sims: Processes) -> None:
    """Its answers go on at others. Awake again it drops what nobody wants any more."""
    readers = begun(Reader(sims.url, number) for number in range(12))
    victim = sims.workers[0]
    name, address = victim.said["worker"], victim.said["grpc"]
    os.kill(victim.process.pid, signal.SIGSTOP)
    try:
        for reader in readers:
            reader.join(40)
            assert not reader.is_alive()
            assert reader.events[-1] == "[DONE]", reader.events[-1]
        assert {reader.worker for reader in readers} > {name}
        until(lambda: state_of(sims, address) == "lost")
        assert ask(sims.url, max_tokens=1)[0] != name
        assert all(w["bookings"] == 0 for w in sims.admin())
    finally:
        os.kill(victim.process.pid, signal.SIGCONT)
    until(lambda: state_of(sims, address) == "healthy")
    until(lambda: metric(victim, "running") == 0)
    assert metric(victim, 'endings_total{reason="cancelled"}') > 0
