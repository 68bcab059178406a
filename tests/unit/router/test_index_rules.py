"""The index's rules one by one, on both implementations."""

import gc
import os
import random
import shutil
import subprocess
import sys
import sysconfig
import tracemalloc
from array import array
from math import inf, nan
from pathlib import Path
from time import thread_time
from typing import Any

import pytest
from warmfleet_router.index import index
from warmfleet_router.index.index_python import MAX_CAP, MAX_DEPTH, WINDOW
from warmfleet_router.index.seats import MAX_COLUMNS, MAX_WORKERS

from tests.index_model import DEVICE, DISK, HOST, LONGEST, Model, Overlap, both, keys, lookup


def test_the_native_index_is_built_where_it_can_be() -> None:
    header = Path(sysconfig.get_path("include"), "Python.h")
    if not os.environ.get("CI") and not (shutil.which("cc") and header.exists()):
        pytest.skip("no compiler")
    assert index.native


def test_the_index_needs_nothing_that_placements_import() -> None:
    """The bar beside Dynamo's tree runs where no protobuf is installed: it measured the twin there."""
    hidden = "import sys; sys.modules['google'] = sys.modules['xxhash'] = None"
    asked = "from warmfleet_router.index.index import native; print(native)"
    shown = subprocess.run([sys.executable, "-c", f"{hidden}; {asked}"], capture_output=True, check=True)
    assert shown.stdout.decode().strip() == str(index.native)


def filled(make: Any, workers: int = 2, blocks: int = 100, cap: int = 1000) -> Any:
    full = make(cap)
    for worker in range(workers):
        assert full.add_worker() == worker
        full.store(worker, DEVICE, 0, keys(0, 0, blocks))
    return full


@both
def test_bad_arguments_are_named_and_change_nothing(make: Any) -> None:
    full = filled(make)
    for method, arguments, error, message in [
        ("store", (0, DEVICE, 0, b"1234567"), ValueError, "8-byte keys"),
        ("store", (0, 0, 0, b""), ValueError, "tier"),
        ("store", (0, 4, 0, b""), ValueError, "tier"),
        ("store", (0, DEVICE, -1, b""), ValueError, "depth"),
        ("remove", (0, 4, b""), ValueError, "tier"),
        ("remove", (0, DEVICE, b"1"), ValueError, "8-byte keys"),
        ("leading", (b"1", [0.0, 0.0]), ValueError, "8-byte keys"),
        ("leading", (b"", [0.0]), ValueError, "booked"),
        ("leading", (b"", [0.0, 0.0], 0), ValueError, "top"),
        ("leading", (b"", [0.0, 0.0], 65), ValueError, "top"),
        ("leading", (b"", ["load", 0.0]), TypeError, "str"),
        ("leading", ("text", [0.0, 0.0]), TypeError, "bytes-like"),
        ("sweep", (0,), ValueError, "budget"),
        *[("held", (worker,), IndexError, "worker") for worker in (-1, 2, MAX_WORKERS, 1 << 31)],
        *[("store", (worker, DEVICE, 0, b""), IndexError, "worker") for worker in (-1, 2, MAX_WORKERS)],
        ("remove_worker", (2,), IndexError, "worker"),
        ("clear", (2,), IndexError, "worker"),
    ]:
        with pytest.raises(error, match=message):
            getattr(full, method)(*arguments)
    assert [full.held(0), full.held(1), len(full), full.gaps] == [100, 100, 100, 0]
    for cap in (0, -1, MAX_CAP + 1):
        with pytest.raises(ValueError, match="cap"):
            make(cap)


@both
def test_loads_come_as_any_sequence_and_no_number_is_the_highest(make: Any) -> None:
    full = filled(make, workers=3)
    for booked in (array("d", [2, 1, 1]), [2, 1, 1], (2.0, 1.0, 1.0), array("f", [2, 1, 1])):
        assert [o.worker for o in lookup(full, keys(0, 0, 9), booked)] == [1, 2, 0]
    assert [o.worker for o in lookup(full, keys(0, 0, 9), [nan, 5.0, inf])] == [1, 0, 2]
    unaligned = memoryview(bytearray(b"x" + keys(0, 0, 9)))[1:]
    assert lookup(full, unaligned, [1.0] * 3)[0] == Overlap(0, 9)


@both
def test_a_removed_workers_number_returns_after_its_sweep(make: Any) -> None:
    full = filled(make)
    full.remove_worker(0)
    assert lookup(full, keys(0, 0, 9), [0.0, 0.0]) == [Overlap(1, 9)]
    assert full.add_worker() == 2
    assert not full.sweep(99)
    full.remove_worker(1)  # during a sweep: the next one takes it
    assert full.sweep(1) is False
    assert [full.add_worker(), full.add_worker()] == [0, 3]
    assert [o.blocks for o in lookup(full, keys(0, 0, 9), [0.0] * 4)] == [0, 0, 0]
    assert full.sweep(100)
    assert (len(full), full.held(0), full.add_worker()) == (0, 0, 1)


@both
def test_every_worker_has_a_seat_and_no_more(make: Any) -> None:
    full = make(10)
    assert [full.add_worker() for _ in range(MAX_WORKERS)] == list(range(MAX_WORKERS))
    with pytest.raises(ValueError, match="workers"):
        full.add_worker()
    booked = array("d", [1.0] * MAX_WORKERS)
    for worker in range(0, MAX_COLUMNS, 3):  # more clears than columns: a sweep is forced
        full.store(worker % MAX_WORKERS, HOST, 0, keys(0, 0, 3))
        full.clear(worker % MAX_WORKERS)
        full.store(worker % MAX_WORKERS, DISK, 0, keys(0, 0, 2))
        full.clear(worker % MAX_WORKERS)
    full.store(MAX_WORKERS - 1, DISK, 0, keys(0, 0, 3))
    assert lookup(full, keys(0, 0, 3), booked)[0] == Overlap(MAX_WORKERS - 1, 3, 3)
    assert full.sweep(1000)
    assert len(full) == 3


def present(full: Any, chain: int, position: int) -> bool:
    return bool(lookup(full, keys(chain, position, position + 1), [0.0])[0].blocks)


@both
def test_above_the_cap_the_deepest_of_the_longest_untouched_goes(make: Any) -> None:
    full = filled(make, workers=1, blocks=WINDOW - 1, cap=WINDOW)
    full.store(0, DEVICE, MAX_DEPTH + 1, keys(1, 20, 21))
    full.store(0, DEVICE, 30, keys(1, 30, 31))
    assert [full.gaps, len(full), full.held(0)] == [1, WINDOW, WINDOW]
    assert not present(full, 1, 20)
    lookup(full, keys(0, 0, WINDOW - 1), [0.0])  # touches all but the last
    full.store(0, DEVICE, 5, keys(1, 40, 41))
    assert [present(full, 1, 30), present(full, 1, 40), present(full, 0, WINDOW - 2)] == [False, True, True]


@both
def test_a_block_that_is_stored_again_counts_as_touched(make: Any) -> None:
    full = filled(make, workers=1, blocks=WINDOW, cap=WINDOW)
    full.store(0, DEVICE, WINDOW - 1, keys(0, WINDOW - 1, WINDOW))
    full.store(0, DEVICE, 20, keys(1, 20, 21))
    assert [present(full, 0, WINDOW - 2), present(full, 0, WINDOW - 1)] == [False, True]


@both
@pytest.mark.parametrize("leap", [False, True])
def test_blocks_looked_up_count_as_touched(make: Any, leap: bool) -> None:
    full = filled(make, workers=1, blocks=9, cap=WINDOW)
    full.store(0, DEVICE, 0, keys(1, 20, 20 + WINDOW - 9))
    lookup(full, keys(0, 0, 9), [0.0], 16, leap)
    full.store(0, DEVICE, 0, keys(2, 30, 31))
    assert lookup(full, keys(0, 0, 9), [0.0])[0].blocks == 9


@both
@pytest.mark.parametrize("leap", [False, True])
def test_whole_rows_looked_up_count_as_touched(make: Any, leap: bool) -> None:
    full = make(4 * WINDOW)
    full.add_worker()
    full.store(0, DEVICE, 0, keys(1, 20, 24))  # not touched, and not as deep
    full.store(0, DEVICE, 0, keys(0, 0, 4 * WINDOW - 4))
    lookup(full, keys(0, 0, LONGEST), [0.0], 16, leap)
    full.store(0, DEVICE, 0, keys(2, 30, 31))
    assert lookup(full, keys(0, 0, LONGEST), [0.0])[0].blocks == 4 * WINDOW - 4


@both
def test_what_departed_workers_left_goes_first_and_is_no_gap(make: Any) -> None:
    full = filled(make, workers=2, blocks=10, cap=WINDOW)
    full.store(1, DEVICE, 10, keys(0, 10, WINDOW))
    full.remove_worker(1)
    full.store(0, DEVICE, 100, keys(2, 100, 106))
    assert [full.gaps, full.held(0), len(full)] == [0, 16, 16]


@both
@pytest.mark.parametrize("leap", [False, True])
def test_a_long_chain_is_exact_whoever_holds_it(make: Any, leap: bool) -> None:
    full = make(10_000)
    a, b = full.add_worker(), full.add_worker()
    long = keys(0, 0, LONGEST)
    full.store(a, DEVICE, 0, long)
    full.store(b, DEVICE, 0, long[: 8 * 1500])
    full.store(b, HOST, 0, long[: 8 * 1000])
    full.remove(b, DEVICE, long[8 * 100 : 8 * 300])
    booked = [0.0, 0.0]
    answers = [Overlap(a, LONGEST), Overlap(b, 1500, 200)]
    assert lookup(full, long, booked, 16, leap) == answers
    full.remove(a, DEVICE, long[8 * 77 : 8 * 78])  # one gap among many blocks alike
    assert lookup(full, long, booked, 16, leap) == [answers[1], Overlap(a, 77)]
    full.remove(b, HOST, long[8 * 200 : 8 * 201])
    assert lookup(full, long, booked, 16, leap)[0] == Overlap(b, 200, 100)


@pytest.mark.skipif(not index.native, reason="no native index was built")
def test_leaps_answer_as_blocks_one_by_one_do() -> None:
    """On chains that lie in many rows, stored in pieces, with holes that are filled from elsewhere."""
    chance = random.Random(8)
    full = index.Index(20_000)
    booked = [chance.random() for _ in range(12)]
    for _ in booked:
        full.add_worker()
    for _ in range(400):
        worker, chain, start = chance.randrange(12), chance.randrange(4), chance.choice([0, 0, 0, 40, 800])
        run = keys(chain, start, start + chance.choice([1, 7, 64, 500, LONGEST]))
        tier = chance.choice([DEVICE, DEVICE, DEVICE, HOST])
        if chance.random() < 0.75:
            full.store(worker, tier, start, run)
        else:
            full.remove(worker, tier, run[:800])
        for asked in range(4):
            packed = keys(asked, 0, chance.choice([9, 700, LONGEST]))
            assert lookup(full, packed, booked, 16, True) == lookup(full, packed, booked, 16, False)


@both
@pytest.mark.parametrize("kinds", [1, 3, 1000])
@pytest.mark.parametrize("idle_hold", [False, True])
def test_the_choice_among_many_who_hold_equally_much(make: Any, kinds: int, idle_hold: bool) -> None:
    """Of whom the idlest of all are some, or enough, or none; some workers have left."""
    chance, full, model = random.Random(kinds), make(20_000), Model()
    holds = [keys(0, 0, chance.choice([0, 16, 16, 16, 300, 305, 700])) for _ in range(300)]
    for worker, packed in enumerate(holds):
        assert full.add_worker() == worker
        full.store(worker, DEVICE, 0, packed)
        model.held[worker] = {}
        model.store(worker, DEVICE, packed)
    for worker in range(297, -1, -3):  # their columns are not in the order of their numbers
        full.clear(worker)
        full.store(worker, DEVICE, 0, holds[worker])
    for worker in (0, 5, 150, 298, 299):
        full.remove_worker(worker)
        del model.held[worker]
    for top in (1, 3, 16, 64):
        booked = [float(chance.randrange(kinds)) for _ in range(298)]
        for worker in [] if idle_hold else [w for w, held in model.held.items() if not held]:
            booked[worker] = -1.0
        for count in (8, 16, 303, LONGEST):
            packed = keys(0, 0, count)
            assert lookup(full, packed, booked, top) == model.lookup(packed, booked, top)


@both
@pytest.mark.parametrize("leap", [False, True])
def test_every_block_of_a_row_is_compared(make: Any, leap: bool) -> None:
    full, packed, booked = filled(make), keys(0, 0, 100), [0.0, 0.0]
    for at in range(100):
        other = packed[: 8 * at] + keys(1, 300, 301) + packed[8 * at + 8 :]
        assert [o.blocks for o in lookup(full, other, booked, 16, leap)] == [at, at]
        full.remove(1, DEVICE, packed[8 * at : 8 * at + 8])
        assert [o.blocks for o in lookup(full, packed, booked, 16, leap)] == [100, at]
        full.store(1, DEVICE, at, packed[8 * at : 8 * at + 8])


@both
def test_a_small_table_survives_churn(make: Any) -> None:
    """Keys are such numbers as an implementation might itself write into free slots."""
    full, chance = make(60), random.Random(3)
    every = [n.to_bytes(8, "little") for n in [*range(200), (1 << 32) - 1, (1 << 64) - 1]]
    worker, held = full.add_worker(), set[bytes]()
    for step in range(6000):
        key = chance.choice(every)
        if key in held or len(held) == 40:
            key = key if key in held else chance.choice(sorted(held))
            full.remove(worker, DEVICE, key)
            held.remove(key)
        else:
            full.store(worker, DEVICE, 0, key)
            held.add(key)
        if step % 50 == 0:
            found = {key for key in every if lookup(full, key, [0.0])[0].blocks}
            assert (found, full.held(worker), len(full)) == (held, len(held), len(held))


@both
def test_memory_is_bounded_and_slices_are_short(make: Any) -> None:
    """K2 in short: four times the cap in distinct blocks (``tests/bars/index_soak.py``: in long)."""
    native = make is index.Index and index.native
    cap, batch = (100_000, 512) if native else (2000, 100)
    full, chance = make(cap), random.Random(1)
    for _ in range(8):
        full.add_worker()
    taken, before = [], 0
    for n in range(0, 4 * cap, batch):
        packed = chance.randbytes(8 * batch)
        start = thread_time()
        full.store(n // batch % 8, DEVICE, n % 4096, packed)
        taken.append(thread_time() - start)
        before = before or (full.memory() if n > 2 * cap else 0)
    assert [len(full), full.gaps] == [cap, sum(map(len, (range(0, 4 * cap, batch),))) * batch - cap]
    assert full.memory() <= before * 1.05
    if native:
        assert full.memory() <= 60 * cap
        assert sorted(taken)[len(taken) * 9 // 10] < 1e-3  # of thread time, which a busy machine stretches


def test_the_native_index_gives_everything_back() -> None:
    packed, booked = keys(0, 0, 200), array("d", [0.0] * 70)

    def live_and_die() -> None:
        full = filled(index.Index, workers=70, blocks=200, cap=150)
        full.store(3, HOST, 0, packed)
        for _ in range(20):
            lookup(full, packed, booked)
        full.remove_worker(3)
        full.sweep(10)

    def counts() -> list[int]:
        gc.collect()
        return [sys.getrefcount(kind) for kind in (index.Index, packed, booked)]

    live_and_die()
    before = counts()
    tracemalloc.start()
    try:
        live_and_die()
        gc.collect()
        traced = tracemalloc.get_traced_memory()[0]
        for _ in range(10 if index.native else 0):
            live_and_die()
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] - traced < 5000
    finally:
        tracemalloc.stop()
    assert counts() == before
