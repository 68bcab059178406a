"""The disk tier: what is served is what was written, whatever happened to the files in between."""

import errno
import os
import random
import resource
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from warmfleet_proto.errors import Corrupt
from warmfleet_proto.settings import ConfigError
from warmfleet_worker.events import Appeared, Tier, Vanished
from warmfleet_worker.tiers import format, segment
from warmfleet_worker.tiers.disk import DiskStore
from warmfleet_worker.tiers.segment import Segment

from tests.unit.tiers.blocks import ROOT, chain_of, made, read, store


def segments(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.wfkv"))


def served(of: DiskStore, blocks: list) -> list[bool]:  # type: ignore[type-arg]
    """Which of the blocks it serves; one that is served wrong fails the test."""
    found = []
    for block in blocks:
        try:
            copy = read(of, block)
        except Corrupt:
            copy = None
        assert copy in (None, block.copy)
        found.append(copy is not None)
    return found


def test_what_was_put_is_there_after_reopening(tmp_path: Path) -> None:
    blocks = chain_of(1, 20)
    first = store(tmp_path)
    first.put(blocks)
    assert all(served(first, blocks))
    first.close()
    again = store(tmp_path)
    assert all(served(again, blocks))
    assert again.catalogue.run(ROOT, [b.identity.hash for b in blocks], 0) == 20
    assert again.take_changes() == [
        Appeared(b.identity.hash, b.identity.parent, i, Tier.DISK) for i, b in enumerate(blocks)
    ]


def test_blocks_are_stored_once(tmp_path: Path) -> None:
    of = store(tmp_path)
    of.put(chain_of(1, 5))
    size = of.used_bytes
    of.put(chain_of(1, 5))
    assert of.used_bytes == size


def test_only_one_worker_uses_a_folder(tmp_path: Path) -> None:
    first = store(tmp_path)
    with pytest.raises(ConfigError, match="in use by another worker"):
        store(tmp_path)
    first.close()
    store(tmp_path).close()


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"fingerprint": b"g" * 32, "model": "huge"}, "made with model 'tiny', this worker serves 'huge'"),
        ({"fingerprint": b"g" * 32}, r"model 'tiny' \(66666666\), this worker serves 'tiny' \(67676767\)"),
        ({"block_size": 8}, "blocks of 4 tokens, this worker has 8"),
        ({"layout": b"l" * 32, "layout_text": "int8 64"}, "layout uint8 64, this worker has int8 64"),
    ],
)
def test_a_file_made_otherwise_is_refused_by_name(
    tmp_path: Path, other: dict[str, object], says: str
) -> None:
    of = store(tmp_path)
    of.put(chain_of(1, 2))
    of.close()
    with pytest.raises(ConfigError, match=says) as caught:
        store(tmp_path, what=made(**other))
    assert "00000001.wfkv" in str(caught.value)
    store(tmp_path).close()  # the lock was given back


@pytest.mark.parametrize("complete", [False, True])
def test_cut_at_any_byte_only_the_tail_is_lost(tmp_path: Path, complete: bool) -> None:
    blocks = chain_of(1, 6)
    of = store(tmp_path)
    of.put(blocks)
    (path,) = segments(tmp_path)
    if complete:
        of._segments[1].finish([format.Place(e.identity, e.offset) for e in of.catalogue])
    of.close()
    whole = path.read_bytes()
    start, each = of_start(path), format.header_bytes(4) + 64
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        again = store(tmp_path)
        kept = max(0, min((length - start) // each, 6))
        assert served(again, blocks) == [True] * kept + [False] * (6 - kept)
        if path.exists():
            assert path.stat().st_size in (start + kept * each, length if complete else -1)
        again.put(blocks)  # and it goes on
        assert all(served(again, blocks))
        again.close()
        for each_path in segments(tmp_path):
            each_path.unlink()


def of_start(path: Path) -> int:
    return Segment.open(path, writable=False).start


def test_a_thousand_spoilt_blocks_are_all_seen(tmp_path: Path) -> None:
    """One bit flipped, cut, swapped with another, or an older record in its place: 250 each."""
    rng = random.Random(5)
    for spoil in (flip, swap_copies, swap_records, replay):
        folder = tmp_path / spoil.__name__
        blocks = chain_of(1, 250)
        of = store(folder)
        of.put(blocks)
        seen = 0
        for i in range(250):
            seen += spoil(of, segments(folder)[0], i, rng)
        detected = sum(1 for block in blocks if not served(of, [block])[0])
        assert seen == 250
        assert detected == of.corrupt == 250
        assert [type(c) for c in of.take_changes()[-250:]] == [Vanished] * 250
        assert len(of) == 0


def record(of: DiskStore, index: int) -> tuple[int, int]:
    """Offset and length."""
    each = of._segments[1].record_bytes
    return of._segments[1].start + index * each, each


def flip(of: DiskStore, path: Path, index: int, rng: random.Random) -> int:
    at, length = record(of, index)
    patch(
        path, spot := at + rng.randrange(length), bytes([path.read_bytes()[spot] ^ (1 << rng.randrange(8))])
    )
    return 1


def swap_copies(of: DiskStore, path: Path, index: int, rng: random.Random) -> int:
    (at, each), data = record(of, index), path.read_bytes()
    if index % 2 == 0:
        other = at + each
        patch(path, at + each - 64, data[other + each - 64 : other + each])
        patch(path, other + each - 64, data[at + each - 64 : at + each])
    return 1


def swap_records(of: DiskStore, path: Path, index: int, rng: random.Random) -> int:
    (at, each), data = record(of, index), path.read_bytes()
    if index % 2 == 0:
        patch(path, at, data[at + each : at + 2 * each] + data[at : at + each])
    return 1


def replay(of: DiskStore, path: Path, index: int, rng: random.Random) -> int:
    """A whole record of another time: right in itself."""
    at, _ = record(of, index)
    old = chain_of(9, 1)[0]
    patch(path, at, format.header(old.identity, old.token_ids, old.copy, of.made) + bytes(old.copy))
    return 1


def patch(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def test_cut_under_an_open_store(tmp_path: Path) -> None:
    blocks = chain_of(1, 40)
    of = store(tmp_path)
    of.put(blocks)
    at, _ = record(of, 30)
    os.truncate(segments(tmp_path)[0], at + 7)
    assert served(of, blocks) == [True] * 30 + [False] * 10
    assert of.corrupt == 10


def test_deleted_under_an_open_store(tmp_path: Path) -> None:
    blocks = chain_of(1, 4)
    of = store(tmp_path)
    of.put(blocks)
    segments(tmp_path)[0].unlink()
    assert all(served(of, blocks))  # as long as the file is open
    of.close()
    assert not any(served(store(tmp_path), blocks))


def test_the_same_block_for_other_tokens_is_a_miss(tmp_path: Path) -> None:
    (block,) = chain_of(1, 1)
    of = store(tmp_path)
    of.put([block])
    with pytest.raises(Corrupt, match="other tokens"):
        read(of, block._replace(token_ids=b"x" * 16))


def test_a_spoilt_header_costs_one_block_at_the_next_opening(tmp_path: Path) -> None:
    blocks = chain_of(1, 9)
    of = store(tmp_path)
    of.put(blocks)
    at, _ = record(of, 4)
    of.close()
    patch(segments(tmp_path)[0], at + 5, b"\xff")
    assert served(store(tmp_path), blocks) == [True] * 4 + [False] + [True] * 4


def test_other_peoples_files_are_left_alone(tmp_path: Path) -> None:
    tmp_path.joinpath("00000001.wfkv").write_bytes(b"a diary, page 1")
    tmp_path.joinpath("notes.wfkv").write_bytes(b"WFKVBLK1")
    of = store(tmp_path)
    of.put(chain_of(1, 1))
    assert tmp_path.joinpath("00000001.wfkv").read_bytes() == b"a diary, page 1"
    assert tmp_path.joinpath("notes.wfkv").exists()


def test_a_full_disk_loses_nothing_that_was_stored(tmp_path: Path) -> None:
    """A real one: the process may write no longer files than 20,000 bytes."""
    blocks = chain_of(1, 200)
    script = f"""
        import resource, signal, sys
        from pathlib import Path
        from tests.unit.tiers.blocks import chain_of, store
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, {resource.RLIM_INFINITY}))
        of = store(Path({str(tmp_path)!r}))
        of.put(chain_of(1, 50))
        size = of.used_bytes
        try:
            of.put(chain_of(1, 200))
        except OSError as error:
            print(error.errno, of.used_bytes == size)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["27", "True"], done.stderr
    of = store(tmp_path)
    assert served(of, blocks) == [True] * 50 + [False] * 150
    of.put(blocks)
    assert all(served(of, blocks))


def test_the_oldest_segment_goes_and_what_is_used_stays(tmp_path: Path) -> None:
    of = DiskStore(tmp_path, made(4096), 20 << 20)
    hot = chain_of(0, 40, 4096)
    of.put(hot)
    for number in range(1, 200):
        of.catalogue.use([block.identity.hash for block in hot])
        of.put(chain_of(number, 40, 4096))
        assert of.used_bytes <= of.capacity + of._segment_bytes
    assert all(served(of, hot))
    assert not any(served(of, chain_of(1, 40, 4096)))
    assert all(served(of, chain_of(199, 40, 4096)))
    changes = of.take_changes()
    appeared = {c.hash for c in changes if isinstance(c, Appeared)}
    vanished = {c.hash for c in changes if isinstance(c, Vanished)}
    assert {entry.identity.hash for entry in of.catalogue} == appeared - vanished
    size = sum(path.stat().st_size for path in segments(tmp_path))
    assert size <= of.capacity + of._segment_bytes
    of.close()
    again = DiskStore(tmp_path, made(4096), 20 << 20)
    assert {e.identity.hash for e in again.catalogue} == {e.identity.hash for e in of.catalogue}


def full_store(folder: Path) -> DiskStore:
    """Of two segments: one more block would be above its bound. All that it holds is used."""
    of = store(folder, 2 << 20, made(1 << 16))
    number = 0
    while of.used_bytes + 2 * (1 << 16) < of.capacity:
        of.put(chain_of(number, 1, 1 << 16))
        number += 1
    assert of.segments == 2
    for entry in of.catalogue:
        entry.used = True
    return of


def test_a_segment_that_cannot_be_deleted_keeps_its_blocks_and_the_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = full_store(tmp_path)

    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EROFS, "it can only be read", str(path))

    monkeypatch.setattr(Path, "unlink", refuse)
    of.put(chain_of(1000, 1, 1 << 16))
    for number in range(1001, 1005):
        with pytest.raises(OSError, match="only be read"):
            of.put(chain_of(number, 4, 1 << 16))
    assert of.segments >= 2
    assert sum(path.stat().st_size for path in segments(tmp_path)) <= of.capacity + of._segment_bytes
    again = {entry.identity.hash for entry in of.catalogue}
    of.close()
    assert {entry.identity.hash for entry in store(tmp_path, 2 << 20, made(1 << 16)).catalogue} == again


def test_a_disk_that_others_have_filled_takes_again_what_a_segment_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To keep what was used of it would need room first."""
    of = full_store(tmp_path)
    oldest, write = segments(tmp_path)[0], segment._write_all

    def while_there_is_room(*arguments: Any) -> int:
        if oldest.exists():
            raise OSError(errno.ENOSPC, "no space left")
        return write(*arguments)

    monkeypatch.setattr(segment, "_write_all", while_there_is_room)
    blocks = chain_of(1000, 4, 1 << 16)
    of.put(blocks)
    assert all(served(of, blocks))
    assert not oldest.exists()


def test_fronts_of_chains_outlive_their_ends(tmp_path: Path) -> None:
    """Leaf first: of a chain over two segments the older half is moved, not dropped."""
    of = DiskStore(tmp_path, made(4096), 17 << 20)
    long = chain_of(0, 300, 4096)
    of.put(long)  # more than one segment
    assert len(segments(tmp_path)) == 2
    of._give_up(1, survivors=1000)
    assert all(served(of, long))
    of.collect(0)
    assert len(of) == 0
    assert segments(tmp_path) == []
