"""Real processes for the bars: started, heard until they are ready, measured, and ended."""

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LOGS = Path(__file__).parents[2] / ".run" / "bars"
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(slots=True)
class Program:
    """A child process; all it prints goes to ``log``."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def ready(self, timeout_s: float = 240.0) -> dict[str, Any]:
        """The JSON line that says ``"ready": true``, with its addresses. Raises RuntimeError."""
        for _ in self.polls(timeout_s):
            for line in self.log.read_text(errors="replace").splitlines():
                if line.startswith("{") and '"ready"' in line:
                    said: dict[str, Any] = json.loads(line)
                    if said["ready"] is True:
                        return said
        raise RuntimeError(f"not ready: {self.tail()}")

    def polls(self, timeout_s: float) -> Iterator[None]:
        """Yields every 50 ms while the process lives and there is time."""
        until = time.monotonic() + timeout_s
        while time.monotonic() < until and self.process.poll() is None:
            yield
            time.sleep(0.05)

    def tail(self) -> str:
        return f"{self.log}:\n" + "\n".join(self.log.read_text(errors="replace").splitlines()[-12:])

    def cpu_s(self) -> float:
        """CPU seconds used so far, all threads, user and system (10 ms steps)."""
        after_name = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(after_name[11]) + int(after_name[12])) / _TICKS

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self, grace_s: float = 5.0) -> None:
        self.process.terminate()
        try:
            self.process.wait(grace_s)
        except subprocess.TimeoutExpired:
            self.kill()


@contextlib.contextmanager
def programs() -> Iterator["Starter"]:
    """A place to start programs from; all of them are ended on the way out, the latest first."""
    starter = Starter()
    try:
        yield starter
    finally:
        for program in reversed(starter.running):
            program.process.send_signal(signal.SIGTERM)
        for program in reversed(starter.running):
            program.stop()


class Starter:
    def __init__(self) -> None:
        self.running: list[Program] = []

    def start(self, name: str, command: Sequence[str]) -> Program:
        LOGS.mkdir(parents=True, exist_ok=True)
        log = LOGS / f"{name}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, cwd=LOGS.parents[1]
            )
        program = Program(process, log)
        self.running.append(program)
        return program
