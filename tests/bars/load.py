"""How fast to offer a workload so that a fleet of sim workers is as busy as a bar says.

Utilisation is the engine time that the workload would take if all workers shared one cache that forgets
nothing, over the time that they have: (uncached prompt tokens x seconds a token + completion tokens x
seconds a token in a decode batch of ``BATCH``) / (workers x duration). Any real placement needs more.
"""

from collections.abc import Callable

from loadtest.workloads import Turn, offered

BATCH = 4
PREFILL_TOKEN_S = 0.5e-3
STEP_S = 20e-3
SEQUENCE_S = 1e-3
LINK_BYTES_PER_S = 12.5e9  # between workers, where there is a link
KV_BYTES = 128 << 10  # a token, of Llama-3-8B

# One slow GPU: 2,000 prompt tokens a second, so that a fleet of eight is busy at a dozen requests a second.
TIMING = {
    "prefill_token_s": PREFILL_TOKEN_S,
    "prefill_pair_s": 0.0,
    "step_s": STEP_S,
    "sequence_s": SEQUENCE_S,
    "context_s": 0.0,
}

Workload = Callable[[float], list[Turn]]  # by rate, for a fixed duration and seed


def work_s(turns: list[Turn]) -> float:
    """Engine seconds with one pooled cache."""
    load = offered(turns)
    return load.uncached * PREFILL_TOKEN_S + load.completion * (STEP_S / BATCH + SEQUENCE_S)


def at(utilisation: float, workers: int, duration: float, workload: Workload) -> list[Turn]:
    """The workload at the rate that comes nearest to ``utilisation`` in a few corrections."""
    wanted = utilisation * workers * duration
    rate = 1.0
    for _ in range(8):  # work is almost linear in the rate: the first use of a prefix is the rest
        rate *= wanted / work_s(workload(rate))
    return workload(rate)
