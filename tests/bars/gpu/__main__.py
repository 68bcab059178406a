"""``python -m tests.bars.gpu [SECTION ...]``: the bars of the GPU engine, on one GPU, beside its ceilings.

Llama-3-8B's shape with random weights in bf16. The figures wanted are vLLM 0.26's on an H200, those of decode
and prefill scaled where this card's ceilings are others. Without names all sections run but ``variants``; one
that fails does not stop the others. ``moving`` alone is for two GPUs.
"""

import gc
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from functools import cached_property

import torch
from warmfleet_worker.engine.torch import TorchEngine

from tests.bars.gpu import exactness, kernels, model, moving, scaled, serving, steps, variants
from tests.bars.gpu.peers import Rates, transformers_prefill
from tests.bars.gpu.timing import Ceilings, measure_ceilings
from tests.bars.rows import Row, table

BLOCKS = 37_000  # 78 GB: what 256 requests of 2k tokens fill, and a little more


class Bench:
    """What sections share, each made when the first asks for it."""

    def __init__(self) -> None:
        self.peers: Rates = {}

    @cached_property
    def ceilings(self) -> Ceilings:
        return measure_ceilings()

    @cached_property
    def engine(self) -> TorchEngine:
        torch.cuda.empty_cache()
        began = time.perf_counter()
        made = model.engine(model.room(BLOCKS))
        loaded = time.perf_counter()
        made.warm_up(steps.CHUNK)
        gc.collect()
        gc.freeze()
        took = time.perf_counter() - loaded
        print(
            f"made in {loaded - began:.1f} s; warm-up for chunks of 16k, compiling included: {took:.1f} s, "
            f"{made.total_blocks} blocks",
            flush=True,
        )
        return made

    def shown(self) -> Iterator[Row]:
        found = self.ceilings
        yield Row("-", "copy, read + write", f"{found.copy / 1e9:,.0f} GB/s")
        yield Row("-", "matmul 8192^3", f"{found.matmul / 1e12:.0f} TFLOP/s")
        yield Row("-", "matmul 8192^3, lasting load", f"{found.long_matmul / 1e12:.0f} TFLOP/s")
        yield Row("-", "attention, causal, 8k", f"{found.attention / 1e12:.0f} TFLOP/s")
        ratios = f"{found.copy / scaled.COPY:.2f}, {found.matmul / scaled.MATMUL:.2f}"
        yield Row("-", "copy and matmul over those of the card that the wanted figures come from", ratios)

    def beside(self) -> Iterator[Row]:
        """Before our engine takes the memory."""
        self.peers = transformers_prefill(model.LLAMA_3_8B, tuple(steps.PREFILL))
        torch.cuda.empty_cache()
        for count, rate in self.peers.items():
            yield Row("1", f"transformers: prefill {count}", f"{rate:,.0f} tok/s")


SECTIONS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "ceilings": Bench.shown,
    "transformers": Bench.beside,
    "exactness": lambda bench: exactness.cache_on_and_off(),
    "decode": lambda bench: steps.decode(bench.engine, bench.ceilings),
    "prefill": lambda bench: steps.prefill(bench.engine, bench.ceilings, bench.peers),
    "hit": lambda bench: steps.hit(bench.engine),
    "paged": lambda bench: kernels.paged(bench.engine.pool, bench.ceilings),
    "prefix": lambda bench: kernels.prefix(bench.engine.pool),
    "movement": lambda bench: kernels.movement(bench.ceilings),
    "batch": lambda bench: serving.serve(bench.engine),
    "arrivals": lambda bench: serving.arrivals(bench.engine),
    "variants": lambda bench: variants.compare(bench.engine),
}


def main(names: list[str]) -> int:
    if names == ["moving"]:
        return moving.main()
    unknown = set(names) - set(SECTIONS)
    if unknown:
        print(f"no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}", file=sys.stderr)
        return 2
    print(torch.cuda.get_device_name(), torch.__version__, flush=True)
    bench, rows = Bench(), []
    for name in names or [name for name in SECTIONS if name != "variants"]:
        began = time.perf_counter()
        for row in _survived(name, bench):
            print(row, flush=True)
            rows.append(row)
        print(f"-- {name}: {time.perf_counter() - began:.1f} s", flush=True)
    print(f"\n{table(rows)}")
    return 0


def _survived(name: str, bench: Bench) -> Iterator[Row]:
    try:
        yield from SECTIONS[name](bench)
    except Exception as error:  # whatever it is, the next section is worth the machine's time
        traceback.print_exc()
        yield Row("-", name, f"failed: {error!r:.80}", "to end", ok=False)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
