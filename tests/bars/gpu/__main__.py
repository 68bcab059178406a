"""``python -m tests.bars.gpu``: the bars of the GPU engine, on one GPU, beside that run's own ceilings.

Llama-3-8B's shape with random weights in bf16. The figures wanted are vLLM 0.26's on an H200.
"""

import gc
import time

import torch

from tests.bars.gpu import kernels, model, serving, steps
from tests.bars.gpu.peers import transformers_prefill
from tests.bars.gpu.timing import measure_ceilings
from tests.bars.rows import Row, table

BLOCKS = 37_000  # 78 GB: what 256 requests of 2k tokens fill, and a little more
COPY, MATMUL = 4204e9, 775e12  # of the card on which vLLM's figures were measured


def main() -> int:
    print(torch.cuda.get_device_name(), torch.__version__, flush=True)
    ceilings = measure_ceilings()
    rows = [
        Row("-", "copy, read + write", f"{ceilings.copy / 1e9:,.0f} GB/s"),
        Row("-", "matmul 8192^3", f"{ceilings.matmul / 1e12:.0f} TFLOP/s"),
        Row("-", "matmul 8192^3, lasting load", f"{ceilings.long_matmul / 1e12:.0f} TFLOP/s"),
        Row("-", "attention, causal, 8k", f"{ceilings.attention / 1e12:.0f} TFLOP/s"),
    ]
    scaled = f"{ceilings.copy / COPY:.2f}, {ceilings.matmul / MATMUL:.2f}"
    rows.append(Row("-", "copy and matmul over those of the card that the wanted figures come from", scaled))
    peers = transformers_prefill(model.LLAMA_3_8B, tuple(steps.PREFILL))
    torch.cuda.empty_cache()
    engine = model.engine(model.room(BLOCKS))
    began = time.perf_counter()
    engine.warm_up(steps.CHUNK)
    gc.collect()
    gc.freeze()
    figure = f"{time.perf_counter() - began:.1f} s, {engine.total_blocks} blocks"
    rows.append(Row("-", "warm-up for chunks of 8k, compiling included", figure))
    parts = (
        lambda: steps.decode(engine, ceilings),
        lambda: steps.prefill(engine, ceilings, peers),
        lambda: kernels.paged(engine.pool, ceilings),
        lambda: steps.hit(engine),
        lambda: kernels.movement(ceilings),
        lambda: serving.serve(engine),
    )
    for part in parts:
        for row in part():
            print(row, flush=True)
            rows.append(row)
    print(f"\n{table(rows)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
