"""Long prompts in short lines: a chain refers to an earlier one that begins like it.

A key names a block with its whole prefix, so that one equal key means equal chains up to it.
"""

from collections.abc import Sequence

from warmfleet_proto.limits import KEY_BYTES

from warmfleet_router.decisions.lines import Chain

STEP = 16  # blocks between the depths at which an earlier chain is found
MOST = 100_000  # depths remembered in a file; beyond, chains are written in full


def kind_of(fingerprint: bytes, block_size: int) -> str:
    """Names the workers that hash a prompt alike."""
    return f"{fingerprint[:8].hex()}/{block_size}"


class Writer:
    """Writes the chains of one file: each names an earlier one and how much it shares with that."""

    def __init__(self) -> None:
        self._count = 0
        self._seen: dict[int, int] = {}  # key at a depth -> the first chain that has it there

    def chain(self, kind: str, keys: Sequence[int], packed: bytes) -> Chain:
        """``packed`` are the same keys as bytes."""
        number, self._count = self._count, self._count + 1
        shared, after = 0, 0
        for depth in range(len(keys) // STEP * STEP, 0, -STEP):
            found = self._seen.get(keys[depth - 1])
            if found is not None:
                shared, after = depth, found
                break
        for depth in range(shared + STEP, len(keys) + 1, STEP):
            if len(self._seen) < MOST:
                self._seen[keys[depth - 1]] = number
        return Chain(kind, packed[shared * KEY_BYTES :], after, shared)


class Reader:
    """Reads the chains of one file, in the order in which they were written."""

    def __init__(self) -> None:
        self._chains: list[Chain] = []

    def keys(self, chain: Chain) -> bytes:
        """Packed. Raises ValueError for a reference to what was not there."""
        self._chains.append(chain)
        parts, most = [], len(chain.keys) // KEY_BYTES + chain.shared
        number = len(self._chains) - 1
        while True:
            own = min(len(chain.keys) // KEY_BYTES, max(most - chain.shared, 0))
            parts.append(chain.keys[: own * KEY_BYTES])
            most = min(most, chain.shared)
            if not most:
                return b"".join(reversed(parts))
            if chain.after >= number:
                raise ValueError(f"chain {number} continues chain {chain.after}, which comes later")
            number = chain.after
            chain = self._chains[number]
