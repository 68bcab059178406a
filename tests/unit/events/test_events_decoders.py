"""Every generation of the engines' events, hostile bytes, and what must be ignored by rule."""

import contextlib
import tracemalloc
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from warmfleet_proto import worker_pb2 as pb
from warmfleet_proto.errors import Corrupt
from warmfleet_router.events import sglang, vllm, wire
from warmfleet_router.events.batch import Cleared, Removed, Stored

from tests.unit.events.releases import CLEARED, SGLANG, VLLM, Release, removed, stored

NAMES = [0x11, (1 << 64) - 5]
LATEST = VLLM[-2]


def spelt(release: Release, numbers: list[int]) -> list[Any]:
    return [bytes(24) + n.to_bytes(8, "big") for n in numbers] if release.digests else numbers


def decoder(release: Release) -> vllm.Decoder | sglang.Decoder:
    return vllm.Decoder() if release.name.startswith("vllm") else sglang.Decoder()


@pytest.mark.parametrize("release", [*VLLM, *SGLANG], ids=str)
def test_every_release_says_the_same(release: Release) -> None:
    names = spelt(release, NAMES)
    batch = decoder(release).batch(
        release.batch(
            stored(names, None, list(range(8)), 4, medium="GPU", group_idx=0),
            stored(names[:1], names[1], [9, 9, 9, 9], 4, medium="GPU", group_idx=0),
            removed(names, medium="GPU", group_idx=0),
            CLEARED,
            rank=3,
        )
    )
    assert batch.rank == (3 if release.rank else None)
    assert batch.ignored == 0
    first, second, gone, cleared = batch.events
    assert isinstance(first, Stored)
    assert isinstance(second, Stored)
    assert (first.tier, list(first.hashes), first.parent) == (pb.DEVICE, NAMES, None)
    assert (list(first.token_ids), first.block_size, first.salt) == (list(range(8)), 4, "")
    assert second.parent == NAMES[1]
    assert gone == Removed(pb.DEVICE, NAMES, None)
    assert cleared == Cleared()


def test_signed_numbers_are_the_same_names() -> None:
    batch = sglang.Decoder().batch(SGLANG[1].batch(removed([-5]), removed([(1 << 64) - 5])))
    assert [event.hashes for event in batch.events if isinstance(event, Removed)] == [[NAMES[1]]] * 2


def test_pairs_of_tokens_stand_for_their_first() -> None:
    told = stored([1], None, [[21, 22], [22, 23]], 2)
    (event,) = sglang.Decoder().batch(SGLANG[2].batch(told)).events
    assert isinstance(event, Stored)
    assert list(event.token_ids) == [21, 22]


@pytest.mark.parametrize(
    ("medium", "locality", "tier"),
    [
        (None, None, pb.DEVICE),
        ("CPU", None, pb.HOST),
        ("CPU_PINNED", None, pb.HOST),
        ("STORAGE", "LOCAL", pb.DISK),
        ("STORAGE", "REMOTE", None),
        ("MARS", None, None),
    ],
)
def test_medium_is_tier(medium: str | None, locality: str | None, tier: int | None) -> None:
    told = stored(spelt(VLLM[-1], [1]), None, [1], 1, medium=medium, locality=locality)
    batch = vllm.Decoder().batch(VLLM[-1].batch(told))
    assert batch.ignored == (tier is None)
    assert [event.tier for event in batch.events if isinstance(event, Stored)] == ([tier] if tier else [])


def test_salt_and_adapter_are_taken_out_of_the_extra_keys() -> None:
    keys = [["ada", ["image", 4], "salty", b"embeds"], ["ada"], None]
    told = stored([1, 2, 3], None, [1, 2, 3], 1, lora_id=7, lora_name="ada", extra_keys=keys)
    (event,) = vllm.Decoder().batch(LATEST.batch(told)).events
    assert isinstance(event, Stored)
    assert (event.adapter, event.salt) == ("ada", "salty")
    assert event.extras == [msgspec.msgpack.encode([["image", 4], b"embeds"]), b"", b""]


def test_a_text_among_the_keys_of_a_later_block_is_no_salt() -> None:
    (event,) = vllm.Decoder().batch(LATEST.batch(stored([2], 1, [5], 1, extra_keys=[["image"]]))).events
    assert isinstance(event, Stored)
    assert (event.salt, event.extras) == ("", [msgspec.msgpack.encode(["image"])])


def test_extra_keys_of_an_unknown_shape_are_equal_to_themselves_alone() -> None:
    def extras(value: int) -> list[bytes]:
        told = stored([1], None, [5], 1, extra_keys=[{"new": value}])
        (event,) = vllm.Decoder().batch(LATEST.batch(told)).events
        assert isinstance(event, Stored)
        return list(event.extras)

    assert extras(1) == extras(1) != extras(2)


def test_a_salt_of_sglang_is_told_in_maps() -> None:
    (event,) = sglang.Decoder().batch(SGLANG[2].batch(stored([1], None, [5], 1, cache_salt="s"))).events
    assert isinstance(event, Stored)
    assert event.salt == "s"


def test_an_adapter_of_sglang_is_told_by_its_name() -> None:
    told = stored([1], None, [5], 1, cache_salt="s", lora_name="ada")
    (event,) = sglang.Decoder().batch(SGLANG[3].batch(told)).events
    assert isinstance(event, Stored)
    assert (event.adapter, event.salt) == ("ada", "s")


def test_only_the_first_group_of_full_attention_speaks() -> None:
    kinds = [(0, "sliding_window"), (1, "full_attention"), (2, "mamba"), (3, "full_attention")]
    decoder = vllm.Decoder()
    told = [stored([n], None, [n], 1, group_idx=n, kv_cache_spec_kind=kind) for n, kind in kinds]
    batch = decoder.batch(LATEST.batch(*told))
    assert [list(e.hashes) for e in batch.events if isinstance(e, Stored)] == [[1]]
    assert batch.ignored == 3
    gone = decoder.batch(LATEST.batch(*(removed([n], group_idx=n) for n in range(4))))
    assert [list(e.hashes) for e in gone.events if isinstance(e, Removed)] == [[1]]


def test_unknown_types_and_fields_are_ignored() -> None:
    event = LATEST.event(stored([1], None, [5], 1)) | {"field_of_tomorrow": {"deep": [1]}}
    batch = vllm.Decoder().batch(
        msgspec.msgpack.encode([0.5, [event, {"type": "BlockMoved"}, ["Moved", 1]], 0])
    )
    assert (len(batch.events), batch.ignored) == (1, 2)


def test_copies_that_are_left_are_told() -> None:
    release = VLLM[-1]
    gone = removed(spelt(release, NAMES), remaining_copy_counts=[0, 2])
    assert vllm.Decoder().batch(release.batch(gone)).events == [Removed(pb.DEVICE, NAMES, [0, 2])]


BAD: list[Any] = [
    None,
    17,
    [],
    [1.0],
    [1.0, 5],
    ["now", []],
    [1.0, [5]],
    [1.0, [[]]],
    [1.0, [{}]],
    [1.0, [["BlockStored", "x", None, [1], 1, None]]],
    [1.0, [["BlockStored", [1], None, [-1], 1, None]]],
    [1.0, [["BlockStored", [1], None, [1 << 32], 1, None]]],
    [1.0, [["BlockStored", [b"short"], None, [1], 1, None]]],
    [1.0, [["BlockStored", [1], None]]],
    [1.0, [{"type": "BlockStored", "block_hashes": [1]}]],
    [1.0, [{"type": "BlockRemoved", "block_hashes": [1, 2], "remaining_copy_counts": [1]}]],
    [1.0, [["BlockStored", [1], None, [1], 1, None, None, None, [["a"], ["b"]]]]],
    [1.0, [["AllBlocksCleared"]] * (wire.MAX_EVENTS + 1)],
]


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: repr(bad)[:60])
def test_nonsense_is_corrupt(bad: Any) -> None:
    with pytest.raises(Corrupt):
        vllm.Decoder().batch(msgspec.msgpack.encode(bad))


@pytest.mark.parametrize("make", [vllm.Decoder, sglang.Decoder])
@given(payload=st.binary(max_size=200))
def test_bytes_are_a_batch_or_corrupt(make: Any, payload: bytes) -> None:
    with contextlib.suppress(Corrupt):
        make().batch(payload)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | st.text(max_size=9)
    | st.binary(max_size=40)
    | st.sampled_from(["BlockStored", "BlockRemoved", "AllBlocksCleared", "GPU", "full_attention"]),
    lambda inner: st.lists(inner, max_size=9)
    | st.dictionaries(st.sampled_from(["type", *VLLM[-1].stored, "ts", "events"]), inner, max_size=9),
    max_leaves=30,
)  # fmt: skip


@pytest.mark.parametrize("make", [vllm.Decoder, sglang.Decoder])
@given(events=st.lists(VALUES, max_size=5))
def test_any_msgpack_is_a_batch_or_corrupt(make: Any, events: list[Any]) -> None:
    with contextlib.suppress(Corrupt):
        make().batch(msgspec.msgpack.encode([0.0, events]))


def test_a_hostile_batch_costs_little_memory() -> None:
    hollow = bytes([0xDD]) + (3 << 20).to_bytes(4, "big") + b"\x90" * (3 << 20)  # 3M empty lists
    kinds = [
        b"\x92\xcb" + bytes(8) + hollow,
        b"\x92\xcb" + bytes(8) + b"\x91\x96\xabBlockStored\x91\x01\xc0" + hollow + b"\x01\xc0",
        b"\x92\xcb" + bytes(8) + b"\x91\x99\xabBlockStored\x91\x01\xc0\x91\x01\x01\xc0\xc0\xc0" + hollow,
        b"\x92\xcb" + bytes(8) + b"\x91" + b"\x91" * (3 << 20),
        bytes(wire.PAYLOAD_BYTES + 1),
    ]
    for make in (vllm.Decoder, sglang.Decoder):
        for payload in kinds:
            tracemalloc.start()
            with contextlib.suppress(Corrupt):
                make().batch(payload)
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert peak < 16 << 20
