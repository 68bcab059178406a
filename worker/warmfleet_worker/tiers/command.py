"""``warmfleet kv``: looks into a disk tier's folder, and carries prefixes between folders as files."""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

from warmfleet_proto.command import Command
from warmfleet_proto.errors import Corrupt
from warmfleet_proto.settings import ConfigError

from warmfleet_worker.tiers import format
from warmfleet_worker.tiers.catalogue import Catalogue, Entry
from warmfleet_worker.tiers.disk import DiskStore, Stored, made_in
from warmfleet_worker.tiers.segment import Segment

_EPILOG = """\
A prefix is named by the BlockHash of its last block, or by as much of its beginning as is unique (ls).
ls, verify and export may be used beside a running worker, gc and import may not.

examples:
  warmfleet kv ls /var/kv
  warmfleet kv export /var/kv 3f2a77 system-prompt.wfkv
  warmfleet kv import /other/kv system-prompt.wfkv
"""
_UNBOUNDED = 1 << 62


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EPILOG
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    ls = actions.add_parser("ls", help="what was made with what, and the prefixes, longest first")
    ls.add_argument("--limit", type=int, default=50, metavar="N", help="prefixes to show; default: 50")
    verify = actions.add_parser("verify", help="read every block; exits 1 when one is wrong")
    gc = actions.add_parser("gc", help="give up the oldest segments")
    gc.add_argument("--to", type=int, required=True, metavar="BYTES", help="what may be left")
    export = actions.add_parser("export", help="one prefix as a file")
    imported = actions.add_parser("import", help="the prefix of a file into a folder")
    for action in (ls, verify, gc, export, imported):
        action.add_argument("folder", type=Path)
    export.add_argument("prefix", help="hexadecimal, from ls")
    export.add_argument("file", type=Path)
    imported.add_argument("file", type=Path)


def run(arguments: argparse.Namespace) -> int:
    """Raises ConfigError."""
    actions: dict[str, Callable[[argparse.Namespace], int]] = {
        "ls": _ls,
        "verify": _verify,
        "gc": _gc,
        "export": _export,
        "import": _import,
    }
    try:
        return actions[arguments.action](arguments)
    except BrokenPipeError:
        raise  # of whoever read what it prints: not the folder's
    except OSError as error:
        raise ConfigError(f"{error.filename or arguments.folder}: {error.strerror}") from None


def _ls(arguments: argparse.Namespace) -> int:
    store = _look_at(arguments.folder)
    made = store.made
    print(f"model {made.model}  layout {made.layout_text}  ", end="")
    print(f"block {made.block_size} tokens, {made.block_bytes} bytes")
    print(f"{len(store)} blocks in {store.segments} segments, {store.used_bytes} bytes")
    ends = sorted(store.catalogue.ends(), key=lambda entry: -entry.identity.depth)
    for entry in ends[: arguments.limit]:
        whole = "" if _chain(store.catalogue, entry) else "  without its beginning"
        tokens = (entry.identity.depth + 1) * made.block_size
        print(f"{entry.identity.hash.hex()}  {tokens} tokens  root {entry.identity.root.hex()[:8]}{whole}")
    if len(ends) > arguments.limit:
        print(f"and {len(ends) - arguments.limit} more")
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    store = _look_at(arguments.folder)
    wrong = len(store.lost)
    print("".join(f"{what}\n" for what in store.lost), end="")
    for entry in list(store.catalogue):
        try:
            store.get(entry.identity.hash, None, bytearray(store.made.block_bytes))
        except Corrupt as error:
            wrong += 1
            print(f"{entry.identity.hash.hex()}: segment {entry.segment}: {error}")
    print(f"{len(store)} blocks are whole, {wrong} are not")  # a file that is not counts as one
    return 1 if wrong else 0


def _gc(arguments: argparse.Namespace) -> int:
    store = DiskStore(arguments.folder, made_in(arguments.folder), _UNBOUNDED)
    before = len(store), store.used_bytes
    store.collect(arguments.to)
    print(f"{before[0] - len(store)} blocks and {before[1] - store.used_bytes} bytes given up; ", end="")
    print(f"{len(store)} blocks and {store.used_bytes} bytes are left")
    store.close()
    return 0


def _export(arguments: argparse.Namespace) -> int:
    store = _look_at(arguments.folder)
    entries = _named(store.catalogue, arguments.prefix)
    blocks = list(_blocks(store, entries))
    if arguments.file.exists():
        raise ConfigError(f"{arguments.file} exists")
    file = Segment.create(arguments.file, store.made)
    file.finish(file.append(blocks))
    print(f"{len(blocks)} blocks, {len(blocks) * store.made.block_size} tokens")
    return 0


def _import(arguments: argparse.Namespace) -> int:
    try:
        file = Segment.open(arguments.file, writable=False)
        blocks = list(_whole(file))
    except Corrupt as error:
        raise ConfigError(f"{arguments.file}: {error}") from None
    made = file.made
    if any(arguments.folder.glob(f"*{format.SUFFIX}")):
        made = made_in(arguments.folder)
    file.expect(made)
    store = DiskStore(arguments.folder, made, _UNBOUNDED)
    before = len(store)
    store.put(blocks)
    print(f"{len(blocks)} blocks, {len(store) - before} of them new")
    store.close()
    return 0


def _look_at(folder: Path) -> DiskStore:
    return DiskStore(folder, made_in(folder), _UNBOUNDED, read_only=True)


def _named(catalogue: Catalogue, prefix: str) -> list[Entry]:
    """The chain that ends with the one block whose hash begins so."""
    found = [entry for entry in catalogue if entry.identity.hash.hex().startswith(prefix.lower())]
    if len(found) != 1:
        many = "no block has" if not found else f"{len(found)} blocks have"
        raise ConfigError(f"{many} a BlockHash that begins with {prefix}")
    chain = _chain(catalogue, found[0])
    if not chain:
        raise ConfigError(f"the blocks before {prefix} are not all there")
    return chain


def _chain(catalogue: Catalogue, end: Entry) -> list[Entry]:
    """The chain from the root to ``end``; empty if a block of it is missing."""
    chain, entry = [end], end
    while entry.identity.depth:
        before = catalogue.get(entry.identity.parent)
        if before is None or before.identity.depth != entry.identity.depth - 1:
            return []
        chain.append(entry := before)
    return chain[::-1]


def _blocks(store: DiskStore, entries: list[Entry]) -> Iterator[Stored]:
    for entry in entries:
        copy = bytearray(store.made.block_bytes)
        try:
            header = store.get(entry.identity.hash, None, copy)
        except Corrupt as error:
            raise ConfigError(f"{entry.identity.hash.hex()}: {error}") from None
        if header is None:
            raise ConfigError(f"{entry.identity.hash.hex()} has just been given up")
        yield Stored(entry.identity, header.token_ids, copy)


def _whole(file: Segment) -> Iterator[Stored]:
    """Every block of an exported file. Raises Corrupt unless all are whole and what they say they are."""
    for place in file.places:
        copy = bytearray(file.made.block_bytes)
        header = file.read(place.offset, copy)
        format.check(header, place.identity, None, copy)
        format.check_hash(header)
        yield Stored(place.identity, header.token_ids, copy)


command = Command("Look into a folder of stored KV blocks; export and import prefixes.", configure, run)
