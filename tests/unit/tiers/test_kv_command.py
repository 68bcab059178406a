"""``warmfleet kv`` on a folder: what it shows, finds, gives up and carries elsewhere."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest
from warmfleet_proto.settings import ConfigError
from warmfleet_worker.tiers.command import command
from warmfleet_worker.tiers.disk import DiskStore
from warmfleet_worker.tiers.segment import Segment

from tests.unit.tiers.blocks import chain_of, made, read, store


def kv(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    command.configure(parser)
    return command.run(parser.parse_args([str(argument) for argument in arguments]))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    of = store(tmp_path / "kv")
    of.put(chain_of(1, 5))
    of.put(chain_of(2, 3))
    of.close()
    return tmp_path / "kv"


def test_ls_shows_prefixes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert kv("ls", folder, "--limit", 1) == 0
    shown = capsys.readouterr().out
    assert "model tiny  layout uint8 64  block 4 tokens, 64 bytes" in shown
    assert f"{chain_of(1, 5)[-1].identity.hash.hex()}  20 tokens" in shown
    assert "and 1 more" in shown
    assert chain_of(2, 3)[-1].identity.hash.hex() not in shown


def test_ls_into_a_pipe_that_is_closed(folder: Path) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    command = [sys.executable, "-m", "warmfleet_router.cli", "kv", "ls", str(folder)]
    done = subprocess.run(command, stdout=write_end, stderr=subprocess.PIPE, check=False)
    os.close(write_end)
    assert (done.returncode, done.stderr) == (1, b"")


def test_ls_beside_a_worker(folder: Path) -> None:
    running = store(folder)
    assert kv("ls", folder) == kv("verify", folder) == 0
    with pytest.raises(ConfigError, match="in use"):
        kv("gc", folder, "--to", 0)
    running.close()


def test_verify_finds_what_is_wrong(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert kv("verify", folder) == 0
    path = folder / "00000001.wfkv"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert kv("verify", folder) == 1
    shown = capsys.readouterr().out
    assert f"{chain_of(2, 3)[-1].identity.hash.hex()}: segment 1: the checksum of the copy is wrong" in shown
    assert "7 blocks are whole, 1 are not" in shown


def test_verify_finds_what_is_in_no_index(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A record without its header, in a segment that has no index yet, and a file without its beginning."""
    path = folder / "00000001.wfkv"
    data = bytearray(path.read_bytes())
    record = (len(data) - Segment.open(path, writable=False).start) // 8
    data[-2 * record] ^= 1
    path.write_bytes(data)
    assert kv("verify", folder) == 1
    shown = capsys.readouterr().out
    assert f"segment 1: no header at byte {len(data) - 2 * record}\n7 blocks are whole, 1 are not" in shown
    path.with_name("00000002.wfkv").write_bytes(data[:20] + b"?" + data[21:])
    assert kv("verify", folder) == 1
    shown = capsys.readouterr().out
    assert "00000002.wfkv: the checksum of the preamble is wrong" in shown
    assert "7 blocks are whole, 2 are not" in shown


def test_gc(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert kv("gc", folder, "--to", 0) == 0
    assert "8 blocks" in capsys.readouterr().out
    assert not list(folder.glob("*.wfkv"))


def test_a_prefix_travels_as_a_file(folder: Path, tmp_path: Path) -> None:
    chain, file = chain_of(1, 5), tmp_path / "prefix.wfkv"
    assert kv("export", folder, chain[3].identity.hash.hex()[:12], file) == 0
    assert kv("import", tmp_path / "other", file) == 0
    other = store(tmp_path / "other")
    assert [read(other, block) for block in chain] == [*(block.copy for block in chain[:4]), None]
    other.close()
    assert kv("import", folder, file) == 0


def test_export_says_what_it_cannot(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no block has a BlockHash that begins with zz"):
        kv("export", folder, "zz", tmp_path / "x")
    with pytest.raises(ConfigError, match="8 blocks have"):
        kv("export", folder, "", tmp_path / "x")
    orphan = chain_of(7, 2)[1:]
    of = store(folder)
    of.put(orphan)
    of.close()
    with pytest.raises(ConfigError, match="are not all there"):
        kv("export", folder, orphan[0].identity.hash.hex(), tmp_path / "x")
    with pytest.raises(ConfigError, match="holds no KV blocks"):
        kv("ls", tmp_path)
    tmp_path.joinpath("taken").touch()
    with pytest.raises(ConfigError, match="exists"):
        kv("export", folder, chain_of(1, 1)[0].identity.hash.hex(), tmp_path / "taken")


def test_import_refuses_by_name(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "prefix.wfkv"
    kv("export", folder, chain_of(1, 5)[4].identity.hash.hex(), file)
    other = DiskStore(tmp_path / "other", made(layout=b"x" * 32, layout_text="int8 64"), 1 << 30)
    other.put(chain_of(3, 1))
    other.close()
    with pytest.raises(ConfigError, match=r"fix\.wfkv: made with layout uint8 64, this worker has int8 64"):
        kv("import", tmp_path / "other", file)
    file.write_bytes(b"hello, hello, hello")
    with pytest.raises(ConfigError, match="not a file of KV blocks"):
        kv("import", folder, file)


def test_import_takes_nothing_of_a_file_that_lies(folder: Path, tmp_path: Path) -> None:
    """Sums and headers agree; the BlockHash is not that of the tokens."""
    block = chain_of(4, 1)[0]
    forged = store(tmp_path / "forged")
    forged.put([block._replace(token_ids=b"\1" * 16)])
    forged.close()
    with pytest.raises(ConfigError, match="BlockHash is not that of the tokens"):
        kv("import", folder, tmp_path / "forged" / "00000001.wfkv")
