"""``python -m tests.bars.gpu``: the bars of the GPU engine, on one GPU, beside that run's own ceilings.

Llama-3-8B's shape with random weights in bf16. The figures wanted are vLLM 0.26's on an H200.
"""

import torch

from tests.bars.gpu import kernels, model, serving, steps
from tests.bars.gpu.timing import measure_ceilings
from tests.bars.rows import Row, table

BLOCKS = 33_000  # 69 GB: 64 x 8k tokens and a little more


def main() -> int:
    print(torch.cuda.get_device_name(), torch.__version__, flush=True)
    ceilings = measure_ceilings()
    rows = [
        Row("-", "copy, read + write", f"{ceilings.copy / 1e9:,.0f} GB/s"),
        Row("-", "matmul 8192^3", f"{ceilings.matmul / 1e12:.0f} TFLOP/s"),
        Row("-", "matmul 8192^3, lasting load", f"{ceilings.long_matmul / 1e12:.0f} TFLOP/s"),
        Row("-", "attention, causal, 8k", f"{ceilings.attention / 1e12:.0f} TFLOP/s"),
    ]
    engine = model.engine(BLOCKS)
    parts = (
        lambda: steps.decode(engine, ceilings),
        lambda: steps.prefill(engine, ceilings),
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
