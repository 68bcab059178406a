"""Where there is no GPU, Triton's interpreter runs the kernels: to be asked for before they are imported."""

import os
from threading import Lock
from typing import Any

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(autouse=True)
def one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter changes Triton's module while a kernel runs: two threads would undo each other's."""
    from warmfleet_kernels import movement

    move, lock = movement._move, Lock()

    def alone(*arguments: Any) -> Any:
        with lock:
            return move(*arguments)

    if os.environ.get("TRITON_INTERPRET"):
        monkeypatch.setattr(movement, "_move", alone)
