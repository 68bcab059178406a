"""The sim engine: its values by a plain definition, its eyes for wrong KV, its clock."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from warmfleet_worker.engine.base import Plan, Run, Sampling, Work
from warmfleet_worker.engine.sim import SimEngine, Timing, extend, oracle, seed_value

ROOT = b"r" * 16
MASK = (1 << 64) - 1


def mixed(token: int) -> int:
    x = (token + 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=40), st.data())
def test_values_are_a_chain_however_it_is_cut(tokens: list[int], data: st.DataObject) -> None:
    value, plain = seed_value(ROOT), []
    for token in tokens:
        value = (0x9E3779B97F4A7C15 * value + mixed(token)) & MASK
        plain.append(value)
    cut = data.draw(st.integers(0, len(tokens) - 1))
    head = extend(seed_value(ROOT), tokens[:cut]).tolist() if cut else []
    tail = extend(head[-1] if head else seed_value(ROOT), tokens[cut:]).tolist()
    assert [*head, *tail] == plain


def work(token_ids: tuple[int, ...], start: int, *, root: bytes = ROOT) -> Work:
    return Work(token_ids, start, (Run((3, 1, 2)),), root, Sampling())


def filled() -> SimEngine:
    """Holds tokens 0..9 in blocks 3, 1 and 2."""
    engine = SimEngine(block_size=4, total_blocks=6)
    engine.execute(Plan((work(tuple(range(10)), 0),)))
    return engine


def drawn(engine: SimEngine) -> int:
    (token,) = engine.execute(Plan((work((10,), 10),))).drawn[0].token_ids
    return token


def test_decoding_is_the_oracles() -> None:
    assert drawn(filled()) == oracle(ROOT, range(11), 1)[0]


@pytest.mark.parametrize("position", range(10))
@pytest.mark.parametrize("bit", [0, 17, 63])
def test_every_bit_read_matters(position: int, bit: int) -> None:
    engine = filled()
    block = (3, 1, 2)[position // 4]
    engine.pool[block, position % 4] ^= np.uint64(1 << bit)
    assert drawn(engine) != oracle(ROOT, range(11), 1)[0]


def test_another_root_or_prefix_is_another_text() -> None:
    right = oracle(ROOT, range(11), 3)
    assert oracle(b"x" * 16, range(11), 3) != right
    assert oracle(ROOT, [*range(9), 10, 9], 3) != right
    seeded = {
        tuple(oracle(ROOT, range(9), 3, sampling=Sampling(1.0, seed=s), choice=c))
        for s in (1, 2)
        for c in (0, 1)
    }
    assert len(seeded) == 4


def test_time_is_the_tables_less_what_the_step_took() -> None:
    timing = Timing(step_s=1.0, sequence_s=0.1, context_s=0.01, prefill_token_s=0.5, prefill_pair_s=0.001)
    prefill = work((1, 2, 3, 4), 2)
    decode = Work((1,), 7, (Run((3, 1, 2)),), ROOT, Sampling(), completion_position=1)
    assert timing.seconds(Plan((prefill,))) == pytest.approx(4 * 0.5 + 0.001 * 4 * (2 + 2))
    assert timing.seconds(Plan((decode, decode))) == pytest.approx(1.0 + 2 * (0.1 + 0.07))
    ticks = iter([100.0, 100.2])
    engine = SimEngine(block_size=4, total_blocks=6, timing=timing, clock=lambda: next(ticks))
    assert engine.execute(Plan((decode,))).delay_s == pytest.approx(1.17 - 0.2)
