"""An engine's prefix cache as its events tell of it, and an index that performs instructions."""

import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from warmfleet_proto import worker_pb2 as pb
from warmfleet_proto.hashing import chain, root_hash
from warmfleet_proto.limits import HASH_BYTES
from warmfleet_router.index.cursor import Clear, Instruction, Remove, Store

from tests.unit.events.releases import CLEARED, Release, removed, stored

FINGERPRINT, SIZE = b"model", 2
PROMPTS = [[prompt % 3, *(random.Random(prompt).randrange(50) for _ in range(9))] for prompt in range(8)]


def ours(tokens: list[int], salt: bytes = b"") -> list[bytes]:
    """The BlockHashes of a prompt, by the definition."""
    packed = b"".join(token.to_bytes(4, "little") for token in tokens)
    return chain(root_hash(FINGERPRINT, SIZE, salt=salt), packed, SIZE)


@dataclass
class Engine:
    """Every prompt that is computed stores all of its blocks anew: copies of a block are not merged."""

    release: Release
    seed: int = 0
    copies: Counter[bytes] = field(default_factory=Counter)
    names: dict[bytes, Any] = field(default_factory=dict)
    log: list[bytes] = field(default_factory=list)  # every batch
    truths: list[set[bytes]] = field(default_factory=list)  # what is present after each

    def name(self, block: bytes) -> Any:
        """Names differ from one incarnation to the next."""
        number = int.from_bytes(block[:8], "little") ^ self.seed
        return bytes(24) + number.to_bytes(8, "big") if self.release.digests else number

    def compute(self, tokens: list[int], cached: int = 0) -> None:
        hashes = ours(tokens)
        new = hashes[cached:]
        self.copies.update(new)
        self.names |= {block: self.name(block) for block in hashes}
        parent = self.name(hashes[cached - 1]) if cached else None
        told = tokens[cached * SIZE : len(hashes) * SIZE]
        self._commit(stored([self.name(b) for b in new], parent, told, SIZE, medium="GPU"))

    def evict(self, block: bytes) -> None:
        self.copies[block] -= 1
        self._commit(removed([self.name(block)], medium="GPU"))

    def reset(self) -> None:
        self.copies.clear()
        self._commit(CLEARED)

    @property
    def present(self) -> set[bytes]:
        return {block for block, copies in self.copies.items() if copies > 0}

    def _commit(self, event: dict[str, Any]) -> None:
        self.log.append(self.release.batch(event))
        self.truths.append(self.present)


@dataclass
class Index:
    """Presence as instructions leave it. An instruction that changes nothing is a defect."""

    present: set[bytes] = field(default_factory=set)
    depths: dict[bytes, int] = field(default_factory=dict)

    def perform(self, instructions: Iterable[Instruction]) -> None:
        for instruction in instructions:
            match instruction:
                case Store(tier, depth, hashes):
                    assert tier == pb.DEVICE
                    blocks = cut(hashes)
                    assert not self.present.intersection(blocks)
                    self.present.update(blocks)
                    self.depths |= {block: depth + i for i, block in enumerate(blocks)}
                case Remove(_, hashes):
                    assert self.present.issuperset(cut(hashes))
                    self.present.difference_update(cut(hashes))
                case Clear():
                    self.present.clear()


def cut(hashes: bytes) -> list[bytes]:
    return [hashes[i : i + HASH_BYTES] for i in range(0, len(hashes), HASH_BYTES)]
