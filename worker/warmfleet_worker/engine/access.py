"""The bytes of a torch pool's blocks, from threads beside the one that computes."""

import mmap
from collections.abc import Sequence
from threading import local
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

_LARGE = 64 << 20
_REGISTERED: list[mmap.mmap] = []
_PORTABLE = 1  # cudaHostRegisterPortable: pinned for every device


class Access(Protocol):
    """Reads and writes blocks, as ``engine.base.Engine`` does."""

    def read(self, blocks: Sequence[int], copy: memoryview) -> None: ...
    def write(self, blocks: Sequence[int], copy: memoryview) -> None: ...


def access(pool: Tensor) -> Access:
    words = pool.view(len(pool), -1).view(torch.uint8)
    return HostAccess(words) if pool.device.type == "cpu" else CudaAccess(words)


def host_memory(size: int, *, pinned: bool) -> memoryview:
    if pinned and size >= _LARGE:
        return _registered(size)
    if pinned:
        return torch.empty(size, dtype=torch.uint8, pin_memory=True).numpy().data
    return np.zeros(size, np.uint8).data


def _registered(size: int) -> memoryview:
    """Pinned where it is, and for good: torch's allocator would take the next power of two."""
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    address = np.frombuffer(pages, np.uint8).ctypes.data
    runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    torch.cuda.check_error(runtime.cudaHostRegister(address, size, _PORTABLE))
    _REGISTERED.append(pages)  # unmapped while it is registered, its addresses could never be again
    return memoryview(pages)


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
    """A copy a block, on a stream of each thread's own. Readable blocks were finished before they became
    readable, and nobody waits for written ones before this returns: so no event is needed."""

    def __init__(self, words: Tensor) -> None:
        self._words = words
        self._own = local()

    @torch.inference_mode()
    def read(self, blocks: Sequence[int], copy: memoryview) -> None:
        stream = self._stream()
        with torch.cuda.stream(stream):
            for target, block in zip(self._host(blocks, copy), blocks, strict=True):
                target.copy_(self._words[block], non_blocking=True)
            stream.synchronize()

    @torch.inference_mode()
    def write(self, blocks: Sequence[int], copy: memoryview) -> None:
        stream = self._stream()
        with torch.cuda.stream(stream):
            for source, block in zip(self._host(blocks, copy), blocks, strict=True):
                self._words[block].copy_(source, non_blocking=True)
            stream.synchronize()

    def _stream(self) -> torch.cuda.Stream:
        if not hasattr(self._own, "stream"):
            self._own.stream = torch.cuda.Stream(self._words.device)  # type: ignore[no-untyped-call]
        stream: torch.cuda.Stream = self._own.stream
        return stream

    def _host(self, blocks: Sequence[int], copy: memoryview) -> tuple[Tensor, ...]:
        size = self._words.shape[1]
        return torch.frombuffer(copy, dtype=torch.uint8, count=len(blocks) * size).view(-1, size).unbind()
