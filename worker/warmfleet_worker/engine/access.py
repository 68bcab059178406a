"""The bytes of a torch pool's blocks, from threads beside the one that computes."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor


class Access(Protocol):
    """As ``engine.base.Engine`` has them."""

    def read(self, blocks: Sequence[int], copy: memoryview) -> None: ...
    def write(self, blocks: Sequence[int], copy: memoryview) -> None: ...


def access(pool: Tensor) -> Access:
    words = pool.view(len(pool), -1).view(torch.uint8)
    return HostAccess(words) if pool.device.type == "cpu" else CudaAccess(words)


def host_memory(size: int, *, pinned: bool) -> memoryview:
    if pinned:
        return torch.empty(size, dtype=torch.uint8, pin_memory=True).numpy().data
    return np.zeros(size, np.uint8).data


class HostAccess:
    """numpy copies in the calling thread alone; torch would start threads of its own for each caller."""

    def __init__(self, words: Tensor) -> None:
        self._words = words.numpy()

    def read(self, blocks: Sequence[int], copy: memoryview) -> None:
        for target, block in zip(self._of(copy), blocks, strict=False):
            target[:] = self._words[block]

    def write(self, blocks: Sequence[int], copy: memoryview) -> None:
        for source, block in zip(self._of(copy), blocks, strict=False):
            self._words[block] = source

    def _of(self, copy: memoryview) -> "np.ndarray[tuple[int, int], np.dtype[np.uint8]]":
        size = self._words.shape[1]
        return np.frombuffer(copy[: len(copy) // size * size], np.uint8).reshape(-1, size)


class CudaAccess:
    """On a stream of its own. Readable blocks were finished before they became readable, and nobody waits
    for written ones before this returns: so no event is needed."""

    def __init__(self, words: Tensor) -> None:
        self._words = words
        self._stream = torch.cuda.Stream(words.device)  # type: ignore[no-untyped-call]

    @torch.inference_mode()
    def read(self, blocks: Sequence[int], copy: memoryview) -> None:
        with torch.cuda.stream(self._stream):
            self._host(blocks, copy).copy_(self._words.index_select(0, self._index(blocks)))
            self._stream.synchronize()

    @torch.inference_mode()
    def write(self, blocks: Sequence[int], copy: memoryview) -> None:
        with torch.cuda.stream(self._stream):
            arrived = self._host(blocks, copy).to(self._words.device)
            self._words.index_copy_(0, self._index(blocks), arrived)
            self._stream.synchronize()

    def _index(self, blocks: Sequence[int]) -> Tensor:
        return torch.tensor(blocks, device=self._words.device)

    def _host(self, blocks: Sequence[int], copy: memoryview) -> Tensor:
        size = self._words.shape[1]
        return torch.frombuffer(copy, dtype=torch.uint8, count=len(blocks) * size).view(-1, size)
