"""The engine that computes: a model, its pool of KV blocks, and one batch a step."""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from warmfleet_kernels import copy_blocks, fetch, prepare, send
from warmfleet_proto.settings import ConfigError

from warmfleet_worker.engine.access import access, host_memory
from warmfleet_worker.engine.base import Copy, Finish, Plan, StepResult, Work
from warmfleet_worker.engine.drawing import Outcome, draw_works, read
from warmfleet_worker.engine.graphs import DecodeGraphs
from warmfleet_worker.engine.ragged import flatten
from warmfleet_worker.engine.warming import warm_up
from warmfleet_worker.models.fingerprint import fingerprint
from warmfleet_worker.models.llama import Llama, pool_shape
from warmfleet_worker.models.load import load_model, open_source

if TYPE_CHECKING:
    from warmfleet_worker.engine.mixed import MixedGraphs

DRAWS = 4096  # the most sequences that a worker runs
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class TorchEngine:
    """Implements ``engine.base.Engine`` on a CPU or one CUDA device."""

    name = "torch"

    def __init__(
        self, llama: Llama, *, model: str, fingerprint: bytes, block_size: int, total_blocks: int
    ) -> None:
        config = llama.config
        self.llama = llama
        self.model = model
        self.fingerprint = fingerprint
        self.block_size = block_size
        self.total_blocks = total_blocks
        self.vocab_size = config.vocab_size
        self.max_context = config.max_context
        shape = pool_shape(config, total_blocks, block_size)
        self.pool = torch.zeros(shape, dtype=llama.dtype, device=llama.device)
        self.block_bytes = self.pool[0].nbytes
        self.layout_text = layout_text(llama.dtype, shape)
        self.layout = layout(llama.dtype, shape)
        self._access = access(self.pool)
        self.graphs: DecodeGraphs | None = None
        self.mixed: MixedGraphs | None = None
        self.depth = 1
        self._drawn = torch.zeros(DRAWS, dtype=torch.int32, device=llama.device)  # by the newest step
        self._current: AbstractContextManager[object] = nullcontext()
        if llama.device.type == "cuda":
            self._current = torch.cuda.device(llama.device)  # Triton launches on the thread's own device
            self.depth = 2
            with self._current:
                from warmfleet_worker.engine import mixed

                self.graphs = DecodeGraphs(llama, self.pool, self._drawn)
                self.mixed = mixed.MixedGraphs(llama, self.pool, self._drawn)

    @classmethod
    def load(
        cls,
        path: str,
        *,
        name: str,
        dtype: str = "auto",
        device: str = "auto",
        block_size: int = 16,
        total_blocks: int | None = None,
        memory_bytes: int | None = None,
        threads: int | None = None,
        progress: Callable[[str, float], None] | None = None,
    ) -> "TorchEngine":
        """The model at ``path``, with ``total_blocks`` blocks or as many as fit into ``memory_bytes``.

        An empty ``name`` means that of the file or folder. ``threads`` on the CPU, for the whole process;
        None: all cores. ``progress`` gets a stage and its done fraction. Raises ConfigError.
        """
        report = progress or (lambda stage, done: None)
        if threads is not None:
            torch.set_num_threads(threads)
        place = _device(device)
        kind = _dtype(dtype, place)
        report("reading the model", 0.0)
        source = open_source(path)
        shape = pool_shape(source.config, 1, block_size)
        blocks = _total_blocks(total_blocks, memory_bytes, shape.numel() * kind.itemsize)
        identity = fingerprint(source.config, source.digests())
        llama = load_model(source, kind, place, torch.get_num_threads(), report)
        engine = cls(
            llama,
            model=name or Path(path).stem,
            fingerprint=identity,
            block_size=block_size,
            total_blocks=blocks,
        )
        report("loaded", 1.0)
        return engine

    def warm_up(self, chunk_tokens: int) -> None:
        """See ``engine.base.Engine.warm_up``."""
        with self._current:
            warm_up(self, chunk_tokens)

    @torch.inference_mode()
    def launch(self, plan: Plan) -> Finish:
        """See ``engine.base.Engine.launch``."""
        with self._current:
            if self.graphs is None or not self.graphs.takes(plan.works):
                outcome = draw_works(plan.works, self.compute(plan), self.llama.logits)
                if outcome.tokens is not None:
                    places = min(len(outcome.tokens), DRAWS)
                    self._drawn[:places].copy_(outcome.tokens[:places])
            else:
                self._copy(plan.copies)
                outcome = self.graphs.step(plan.works)
            return self._finish(plan.works, fetch(outcome))

    def _finish(self, works: tuple[Work, ...], outcome: Outcome) -> Finish:
        done = None
        if self.pool.is_cuda:
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record()

        def finish() -> StepResult:
            if done is not None:
                done.synchronize()
            return StepResult(read(works, outcome))

        return finish

    def execute(self, plan: Plan) -> StepResult:
        """One step, finished when this returns."""
        return self.launch(plan)()

    @torch.inference_mode()
    def compute(self, plan: Plan) -> Tensor:
        """Copies, then KV of all works; the last hidden states of their rows, one work after another."""
        self._copy(plan.copies)
        if not plan.works:
            return self.pool.new_empty((0, self.llama.config.hidden))
        if self.mixed is not None and self.mixed.takes(plan.works):
            return self.mixed.compute(plan.works)
        ragged = flatten(plan.works, self.block_size, self.llama.rope)
        tables = ragged.token_ids, ragged.homes, ragged.follows
        token_ids, homes, follows = send(tables, self.pool.device)
        if follows is not None:
            drawn = self._drawn.index_select(0, follows.places)
            token_ids = token_ids.index_copy(0, follows.rows.long(), drawn)
        batch = prepare(ragged.sequences, self.pool)
        return self.llama.forward(token_ids, homes, batch, self.pool)

    @property
    def cuda_pool(self) -> Tensor | None:
        """See ``engine.base.Engine``."""
        return self.pool if self.pool.is_cuda else None

    def host_memory(self, size: int) -> memoryview:
        """See ``engine.base.Engine``. Pinned for a GPU; on a CPU untouched pages cost nothing."""
        return host_memory(size, pinned=self.pool.is_cuda)

    def read_blocks(self, blocks: Sequence[int], copy: memoryview) -> None:
        """See ``engine.base.Engine``."""
        self._access.read(blocks, copy)

    def write_blocks(self, blocks: Sequence[int], copy: memoryview) -> None:
        """See ``engine.base.Engine``."""
        self._access.write(blocks, copy)

    def _copy(self, copies: tuple[Copy, ...]) -> None:
        if copies:
            sources, targets = send(torch.tensor(copies, dtype=torch.int32), self.pool.device).long().T
            copy_blocks(self.pool, sources, targets)


def layout_text(dtype: torch.dtype, shape: torch.Size) -> str:
    """dtype, and the pool's shape without its blocks."""
    return f"{dtype} {','.join(map(str, shape[1:]))}"


def layout(dtype: torch.dtype, shape: torch.Size) -> bytes:
    """What a stored copy of a block looks like, from its dtype and the pool's shape; 32 bytes."""
    return hashlib.sha256(f"warmfleet block layout v1 {layout_text(dtype, shape)}".encode()).digest()


def _dtype(name: str, device: torch.device) -> torch.dtype:
    """``auto``: bfloat16 but on CPUs that would only emulate it."""
    if name == "auto":
        emulated = device.type == "cpu" and not torch.backends.cpu.get_cpu_capability().startswith("AVX512")
        return torch.float32 if emulated else torch.bfloat16
    if name not in DTYPES:
        raise ConfigError(f"dtype {name!r} is not supported; supported are auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from None
    return device


def _total_blocks(total: int | None, memory_bytes: int | None, block_bytes: int) -> int:
    if total is None:
        if memory_bytes is None:
            raise ConfigError("the pool's size is not given: neither total_blocks nor memory_bytes")
        total = memory_bytes // block_bytes
    if total < 1:
        raise ConfigError(f"the pool holds no block: one is {block_bytes} bytes")
    return total
