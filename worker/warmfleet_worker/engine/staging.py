"""Static tables on a GPU that every step fills anew, without waiting for the step in front."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Words = npt.NDArray[np.int32]


class _Host(NamedTuple):
    """Words on their way: pinned, and not to be written before the device has copied them."""

    words: Tensor
    array: Words  # the same memory
    copied: torch.cuda.Event


class Staging:
    """``device`` holds the words that the newest step sent."""

    def __init__(self, words: int, device: torch.device) -> None:
        self.device = torch.zeros(words, dtype=torch.int32, device=device)
        self._hosts = [self._host(words) for _ in range(2)]  # one is filled while the other is copied

    def next(self) -> Words:
        """Memory to be filled for the next step. It still holds what an earlier step left there."""
        self._hosts.reverse()
        self._hosts[0].copied.synchronize()
        return self._hosts[0].array

    def send(self, used: int) -> None:
        """The first ``used`` words of what ``next`` gave."""
        host = self._hosts[0]
        self.device[:used].copy_(host.words[:used], non_blocking=True)
        host.copied.record()

    @staticmethod
    def _host(words: int) -> _Host:
        pinned = torch.zeros(words, dtype=torch.int32, pin_memory=True)
        return _Host(pinned, pinned.numpy(), torch.cuda.Event())  # type: ignore[no-untyped-call]
