"""Engine names to our BlockHashes, copies counted, bounded."""

import gc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from warmfleet_proto import worker_pb2 as pb
from warmfleet_router.events import identity, sglang, vllm
from warmfleet_router.events.batch import Cleared, Removed, Stored
from warmfleet_router.events.mirror import Mirror
from warmfleet_router.index.cursor import SLICE_BLOCKS, Clear, Remove, Store

from tests.unit.events.engine import FINGERPRINT, PROMPTS, SIZE, Engine, Index, cut, ours
from tests.unit.events.releases import SGLANG, VLLM, Release


def fresh(names: int = 1000) -> Mirror:
    return Mirror(FINGERPRINT, SIZE, names)


def told(hashes: list[int], tokens: list[int], parent: int | None = None, **more: object) -> Stored:
    fields = {"tier": pb.DEVICE, "adapter": "", "salt": "", "extras": (), "block_size": SIZE} | more
    return Stored(hashes=hashes, parent=parent, token_ids=tokens, **fields)  # type: ignore[arg-type]


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["compute", "compute", "evict", "reset"]), st.integers(0, 7), st.integers(0, 9)
    ),
    max_size=40,
)


@pytest.mark.parametrize("release", [*VLLM, *SGLANG], ids=str)
@given(steps=STEPS)
def test_the_index_holds_what_the_engine_does(release: Release, steps: list[tuple[str, int, int]]) -> None:
    engine, index, mirror = Engine(release), Index(), fresh()
    decoder = vllm.Decoder() if release.name.startswith("vllm") else sglang.Decoder()
    for what, prompt, at in steps:
        if what == "compute":
            hashes = ours(PROMPTS[prompt])
            cached = next((i for i, b in enumerate(hashes) if b not in engine.present), len(hashes) - 1)
            engine.compute(PROMPTS[prompt], min(cached, at))
        elif what == "evict" and engine.present:
            engine.evict(sorted(engine.present)[at % len(engine.present)])
        elif what == "reset":
            engine.reset()
        else:
            continue
        for event in decoder.batch(engine.log[-1]).events:
            index.perform(mirror.apply(event))
        assert index.present == engine.present
    for tokens in PROMPTS:
        for depth, block in enumerate(ours(tokens)):
            assert index.depths.get(block, depth) == depth


def test_a_salt_an_adapter_and_an_image_are_other_blocks() -> None:
    seen: set[bytes] = set()
    kinds: list[dict[str, object]] = [
        {},
        {"salt": "a"},
        {"adapter": "a"},
        {"salt": "b"},
        {"extras": [b"image", b""]},
    ]
    for name, kind in enumerate(kinds):
        (store,) = fresh().apply(told([name, name + 100], [1, 2, 3, 4], **kind))
        assert isinstance(store, Store)
        assert not seen.intersection(cut(store.hashes))
        seen.update(cut(store.hashes))
    assert seen.issuperset(ours([1, 2, 3, 4], salt=identity.salt_of("", "a")))


def test_a_child_of_an_unknown_parent_is_left_out() -> None:
    mirror = fresh()
    assert not list(mirror.apply(told([5], [1, 2], parent=77)))
    assert not list(mirror.apply(Removed(pb.DEVICE, [5], None)))


@pytest.mark.parametrize(
    "bad",
    [
        told([1], [1, 2, 3]),
        told([1, 2], [1, 2]),
        told([1], [1], block_size=1),
        told([1], [1, 2, 3], block_size=3),
    ],
)
def test_blocks_of_another_size_are_left_out(bad: Stored) -> None:
    mirror = fresh()
    assert not list(mirror.apply(bad))


def test_a_name_with_two_meanings_is_not_believed() -> None:
    mirror = fresh()
    index = Index()
    index.perform(mirror.apply(told([1], [1, 2])))
    index.perform(mirror.apply(told([1], [8, 9])))
    assert index.present == set(ours([1, 2]))


def test_names_outlive_presence() -> None:
    mirror, index = fresh(), Index()
    index.perform(mirror.apply(told([1], [1, 2])))
    index.perform(mirror.apply(Cleared()))
    index.perform(mirror.apply(told([2], [3, 4], parent=1)))
    assert index.present == {ours([1, 2, 3, 4])[1]}


def test_an_offloaded_block_comes_without_tokens() -> None:
    mirror = fresh()
    list(mirror.apply(told([1, 2], [1, 2, 3, 4])))
    (store,) = mirror.apply(told([2], [], tier=pb.HOST, block_size=0))
    assert store == Store(pb.HOST, 1, ours([1, 2, 3, 4])[1])
    (remove,) = mirror.apply(Removed(pb.HOST, [2], None))
    assert remove == Remove(pb.HOST, ours([1, 2, 3, 4])[1])


def test_copies_left_are_believed_where_they_are_told() -> None:
    mirror = fresh()
    list(mirror.apply(told([1], [1, 2])))
    assert not list(mirror.apply(Removed(pb.DEVICE, [1], [3])))
    assert len(list(mirror.apply(Removed(pb.DEVICE, [1], [0])))) == 1


def test_the_garbage_collector_has_nothing_to_do_with_blocks() -> None:
    """There may be millions."""
    mirror = fresh()
    list(mirror.apply(told([1, 2], [1, 2, 3, 4])))
    assert not any(map(gc.is_tracked, (*mirror._names.values(), *mirror._copies.values())))


def test_names_are_bounded_and_the_index_stays_a_part_of_the_truth() -> None:
    mirror, index, truth = fresh(names=10), Index(), set()
    for n in range(100):
        index.perform(mirror.apply(told([n], [n, n])))
        truth |= set(ours([n, n]))
        assert len(mirror) <= 10
        assert len(index.present) <= 10
        assert index.present <= truth
    assert index.present == {ours([n, n])[0] for n in range(90, 100)}


def test_instructions_are_small() -> None:
    many, sizes = SLICE_BLOCKS * 2 + 5, [SLICE_BLOCKS, SLICE_BLOCKS, 5]
    mirror = fresh(names=many)
    stores = list(mirror.apply(told(list(range(many)), [7] * many * SIZE)))
    assert [len(cut(store.hashes)) for store in stores if isinstance(store, Store)] == sizes
    removes = list(mirror.apply(Removed(pb.DEVICE, list(range(many)), None)))
    assert [len(cut(remove.hashes)) for remove in removes if isinstance(remove, Remove)] == sizes


def keys(tokens: list[int]) -> list[bytes]:
    return [block[:8] for block in ours(tokens)]


def test_what_the_engine_did_not_find_is_gone() -> None:
    mirror, index = fresh(), Index()
    index.perform(mirror.apply(told([1, 2], [1, 2, 3, 4])))
    index.perform(mirror.not_found(keys([1, 2, 3, 4])[1:], mirror.clock, nothing=False))
    assert index.present == set(ours([1, 2, 3, 4])[:1])
    index.perform(mirror.apply(Removed(pb.DEVICE, [2], None)))
    index.perform(mirror.apply(told([2], [3, 4], parent=1)))
    assert index.present == set(ours([1, 2, 3, 4]))


def test_a_reset_that_was_not_told_is_seen_by_an_answer_that_finds_nothing() -> None:
    """The prompt's own computing is told of before its answer comes: those blocks are there again."""
    mirror, index = fresh(), Index()
    index.perform(mirror.apply(told([1, 2], [1, 2, 3, 4])))
    index.perform(mirror.apply(told([8, 9], [8, 8, 9, 9])))
    placed = mirror.clock
    index.perform(mirror.apply(told([1, 2], [1, 2, 3, 4])))
    index.perform(mirror.not_found(keys([1, 2, 3, 4]), placed, nothing=True))
    assert index.present == set(ours([1, 2, 3, 4]))
    assert index.depths[ours([1, 2, 3, 4])[1]] == 1
    index.perform(mirror.apply(Removed(pb.DEVICE, [2, 1], None)))  # one copy each was left, not two
    assert not index.present


def test_an_eviction_that_was_told_is_no_reset() -> None:
    mirror, index = fresh(), Index()
    index.perform(mirror.apply(told([1, 2], [1, 2, 3, 4])))
    index.perform(mirror.apply(told([8], [8, 8])))
    placed = mirror.clock
    index.perform(mirror.apply(Removed(pb.DEVICE, [2, 1], None)))
    index.perform(mirror.apply(told([1, 2], [1, 2, 3, 4])))
    before = set(index.present)
    index.perform(mirror.not_found(keys([1, 2, 3, 4]), placed, nothing=True))
    assert index.present == before


def test_a_chain_that_an_eviction_broke_is_no_reset() -> None:
    mirror, index = fresh(), Index()
    index.perform(mirror.apply(told([1, 2], [1, 2, 3, 4])))
    index.perform(mirror.apply(told([8], [8, 8])))
    placed = mirror.clock
    index.perform(mirror.apply(Removed(pb.DEVICE, [1], None)))
    index.perform(mirror.apply(told([1], [1, 2])))
    index.perform(mirror.not_found(keys([1, 2, 3, 4]), placed, nothing=True))
    assert index.present == set(ours([1, 2]) + ours([8, 8]))


@given(steps=STEPS)
def test_after_an_answer_no_phantom_of_its_prompt_is_left(steps: list[tuple[str, int, int]]) -> None:
    """An engine that loses blocks and its whole cache, and never says so."""
    engine, index, mirror, decoder = Engine(VLLM[-1]), Index(), fresh(), vllm.Decoder()
    for what, prompt, _ in steps:
        hashes, placed = ours(PROMPTS[prompt]), mirror.clock
        if what == "compute":
            held = engine.present
            found = next((i for i, block in enumerate(hashes) if block not in held), len(hashes))
            expected = next((i for i, block in enumerate(hashes) if block not in index.present), len(hashes))
            if found < len(hashes):
                engine.compute(PROMPTS[prompt], found)
                for event in decoder.batch(engine.log[-1]).events:
                    index.perform(mirror.apply(event))
            doubted = keys(PROMPTS[prompt])[found:expected]
            index.perform(mirror.not_found(doubted, placed, nothing=not found))
            assert index.present.intersection(hashes) <= engine.present
        elif what == "evict":
            engine.copies.pop(hashes[-1], None)
        else:
            engine.copies.clear()


def test_a_restart_forgets_names_too() -> None:
    mirror = fresh()
    list(mirror.apply(told([1], [1, 2])))
    assert list(mirror.restart()) == [Clear()]
    assert not list(mirror.apply(told([2], [3, 4], parent=1)))


def test_what_a_prompt_that_is_computed_anew_made_doubtful_is_there_again_once_any_of_it_is_found() -> None:
    """Such a request has nothing cached, whatever there is: a client can ask for that, and nobody tells."""
    mirror, index = fresh(), Index()
    index.perform(mirror.apply(told([1, 2], [1, 2, 3, 4])))
    index.perform(mirror.apply(told([7, 8, 9], [7, 7, 8, 8, 9, 9])))
    before = mirror.clock
    index.perform(mirror.not_found(keys([1, 2, 3, 4]), before, nothing=True))
    assert not index.present
    index.perform(mirror.apply(Removed(pb.DEVICE, [9], None)))
    index.perform(mirror.apply(told([8], [8, 8], parent=7)))
    assert index.present == {ours([7, 7, 8, 8])[1]}
    index.perform(mirror.found(keys([7, 7, 8, 8]), before - 1))  # it may have been placed before a reset
    index.perform(mirror.found(keys([8, 8]), mirror.clock))
    assert mirror.doubts
    index.perform(mirror.found(keys([7, 7, 8, 8]), mirror.clock))
    assert index.present == set(ours([1, 2, 3, 4]) + ours([7, 7, 8, 8]))
    assert not mirror.doubts
    index.perform(mirror.apply(Removed(pb.DEVICE, [1, 2, 7, 8], None)))
    assert not index.present


def test_after_a_second_such_answer_only_what_that_one_took_comes_back() -> None:
    mirror, index = fresh(), Index()
    index.perform(mirror.apply(told([1], [1, 2])))
    index.perform(mirror.not_found(keys([1, 2]), mirror.clock, nothing=True))
    index.perform(mirror.apply(told([3], [3, 4])))
    index.perform(mirror.not_found(keys([3, 4]), mirror.clock, nothing=True))
    index.perform(mirror.found(keys([1, 2]), mirror.clock))
    assert not index.present
    index.perform(mirror.apply(Cleared()))
    index.perform(mirror.found(keys([3, 4]), mirror.clock))
    assert not index.present


@pytest.fixture
def _slices_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("warmfleet_router.events.mirror.SLICE_BLOCKS", 1)


@pytest.mark.usefixtures("_slices_of_one")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_the_index_holds_what_the_mirror_does_whenever_an_answer_comes(data: st.DataObject) -> None:
    """Also in the middle of a long event, which is taken in by slices."""
    engine, mirror, index, decoder = Engine(VLLM[-1]), fresh(), Index(), vllm.Decoder()
    placed = [0]

    def answers() -> None:
        if data.draw(st.booleans()):
            prompt, found = data.draw(st.sampled_from(PROMPTS)), data.draw(st.integers(0, 3))
            at = data.draw(st.sampled_from(placed))
            index.perform(mirror.not_found(keys(prompt)[found:], at, nothing=not found))
        else:
            index.perform(mirror.found(keys(data.draw(st.sampled_from(PROMPTS))), mirror.clock))

    for _ in range(data.draw(st.integers(1, 12))):
        placed.append(mirror.clock)
        if data.draw(st.booleans()) and engine.present:
            engine.evict(min(engine.present))
        else:
            engine.compute(data.draw(st.sampled_from(PROMPTS)), 0)
        for event in decoder.batch(engine.log[-1]).events:
            for instruction in mirror.apply(event):
                if isinstance(instruction, Store):  # the block at hand may have been told with what was kept
                    index.present -= set(cut(instruction.hashes))
                index.perform([instruction])
                answers()
        answers()
        assert index.present == {copies.block.hash for copies in mirror._copies.values()}
