"""What laying weights out once saves a CPU: products of the demo model's shapes, beside torch's linear.

One thread, both ways in turns, medians. A decode step is bound by reading the weights, a chunk by arithmetic.
"""

import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor
from torch.nn.functional import linear
from warmfleet_kernels import pack, project

from tests.bars.rows import Row

SHAPES = ((960, 576), (576, 576), (3072, 576), (576, 1536))  # of one layer, [out, in]
REPEATS = 41


def main() -> list[Row]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            return [row(dtype, rows) for dtype in (torch.float32, torch.bfloat16) for rows in (1, 8, 64, 256)]
    finally:
        torch.set_num_threads(threads)


def row(dtype: torch.dtype, rows: int) -> Row:
    plain_s = packed_s = 0.0
    for out, width in SHAPES:
        x, weight = torch.randn(rows, width).to(dtype), torch.randn(out, width).to(dtype)
        plain, packed = in_turns(plainly(x, weight), packedly(x, pack(weight)))
        plain_s, packed_s = plain_s + plain, packed_s + packed
    figure = f"{1e3 * plain_s:.2f} ms, packed {1e3 * packed_s:.2f}, {plain_s / packed_s:.2f}x"
    return Row("2", f"{str(dtype).removeprefix('torch.')}, {rows} rows through one layer's weights", figure)


def plainly(x: Tensor, weight: Tensor) -> Callable[[], object]:
    """As it was before: in float32 at least four rows, for sums that do not depend on their number."""
    wide = torch.cat((x, x.new_zeros(4 - len(x), x.shape[1]))) if len(x) < 4 and x.dtype.itemsize == 4 else x
    return lambda: linear(wide, weight)


def packedly(x: Tensor, weight: Tensor) -> Callable[[], object]:
    return lambda: project(x, weight)


def in_turns(*ways: Callable[[], object]) -> list[float]:
    """Seconds of each."""
    times: list[list[float]] = [[] for _ in ways]
    for _ in range(REPEATS):
        for way, taken in zip(ways, times, strict=True):
            way()  # its weights are in the cache as far as they fit
            began = time.perf_counter()
            way()
            taken.append(time.perf_counter() - began)
    return [median(taken) for taken in times]
