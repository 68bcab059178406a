"""Medians of device time, and the ceilings that they are compared with, measured in the same run."""

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

_HIDDEN_CYCLES = 2_000_000  # a spinning kernel of 1 ms hides the launch of what is timed


def device_s(calls: Sequence[Callable[[], object]], repeats: int = 20) -> float:
    """Median seconds of a call; the calls take turns, so that none finds its data in the cache."""
    for call in calls[:3]:
        call()
    torch.cuda.synchronize()
    times = []
    for n in range(repeats):
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(_HIDDEN_CYCLES)
        began.record()
        calls[n % len(calls)]()
        ended.record()
        torch.cuda.synchronize()
        times.append(began.elapsed_time(ended) / 1e3)
    return statistics.median(times)


def wall_s(call: Callable[[], object], repeats: int = 10, warm: int = 2, rest: float = 0.0) -> float:
    """Median seconds on the host's clock, the device idle before (so long at least) and after."""
    times = []
    for _ in range(warm + repeats):
        torch.cuda.synchronize()
        time.sleep(rest)
        began = time.perf_counter()
        call()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return statistics.median(times[warm:])


def kernel_s(call: Callable[[], object]) -> float:
    """Seconds that the device spends in kernels and copies during a call, one at a time."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call()
        torch.cuda.synchronize()
    return sum(event.self_device_time_total for event in profile.key_averages()) / 1e6


class Ceilings(NamedTuple):
    copy: float  # bytes/s, read and written
    matmul: float  # FLOP/s, bf16, 8192^3, alone
    long_matmul: float  # ... one after another for half a second: power and clocks as in a long prefill
    attention: float  # FLOP/s, causal, 8k


def measure_ceilings() -> Ceilings:
    source = torch.randn(1 << 31, dtype=torch.bfloat16, device="cuda")
    target = torch.empty_like(source)
    copy = 2 * source.nbytes / device_s([partial(target.copy_, source)])
    del source, target
    a, b = torch.randn((2, 8192, 8192), dtype=torch.bfloat16, device="cuda")
    matmul = 2 * 8192**3 / device_s([lambda: a @ b])
    took = wall_s(_products(a, b, 400), repeats=1, warm=1)
    return Ceilings(copy, matmul, 400 * 2 * 8192**3 / took, attention_rate(8192))


def matmul_rate(seconds: float, rest: float = 0.0) -> float:
    """FLOP/s of products of 8192^3 one after another for about so long, a few times like whole prompts, with
    so much rest before each."""
    a, b = torch.randn((2, 8192, 8192), dtype=torch.bfloat16, device="cuda")
    many = max(1, round(seconds / 1.6e-3))
    return many * 2 * 8192**3 / wall_s(_products(a, b, many), repeats=3, warm=1, rest=rest)


def _products(a: Tensor, b: Tensor, many: int) -> Callable[[], None]:
    """All into one result: hundreds of them kept would fill the device."""
    out = torch.empty_like(a)

    def multiply() -> None:
        for _ in range(many):
            torch.mm(a, b, out=out)

    return multiply


def attention_rate(length: int) -> float:
    """FLOP/s of torch's fastest causal attention for 32 query and 8 KV heads of 128."""
    query = torch.randn((1, 32, length, 128), dtype=torch.bfloat16, device="cuda")
    key, value = torch.randn((2, 1, 8, length, 128), dtype=torch.bfloat16, device="cuda")

    def attend() -> object:
        return scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)

    rates = []
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION):
        with sdpa_kernel(backend):
            rates.append(4 * 32 * 128 * length * length / 2 / device_s([attend]))
    return max(rates)
