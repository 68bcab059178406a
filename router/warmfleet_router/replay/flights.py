"""Blocks on their way to a modelled worker, and the room that is taken for them: the rules of a real worker's
``fetching``."""

from collections import Counter
from collections.abc import Mapping, Sequence

from warmfleet_router.replay.cache import Cache, Node
from warmfleet_router.replay.job import Flight, Job

SHARE = 2  # of the pool is the most that is on its way from peers, or has come for those who still wait
AHEAD_SHARE = 4  # of it is the most for one flight that nobody waits for


class Flights:
    def __init__(self, cache: Cache, wanted: Mapping[int, int], block_size: int) -> None:
        """``wanted``: keys of the prompts of all jobs at the worker."""
        self._cache = cache
        self._block_size = block_size
        self._wanted = wanted
        self._keys: Counter[int] = Counter()  # of the blocks that are on their way
        self._flying = 0  # blocks on their way from peers
        self._landed = 0  # blocks that came from there for those who still wait

    @property
    def busy(self) -> bool:
        """Whether anything comes from peers."""
        return self._flying > 0

    def follow(self, keys: Sequence[int], matched: int) -> int:
        """Leading blocks that are there, ``matched`` of them, or on their way."""
        while matched < len(keys) and keys[matched] in self._keys:
            matched += 1
        return matched

    def brings(self, keys: Sequence[int]) -> bool:
        """Whether the block that would make a readable prefix longer is on its way."""
        if not self._keys:
            return False
        matched = len(self._cache.match(keys))
        return matched < len(keys) and keys[matched] in self._keys

    # ---- from peers

    def named(self, job: Job) -> int:
        """Where the run of blocks ends that its pull names."""
        return (job.pull.from_tokens + job.pull.tokens) // self._block_size if job.pull else 0

    def ask(self, job: Job, running: int) -> Flight | None:
        """Begins to fetch what a waiting job's pull names, once there is room for all of it beside
        ``running`` sequences. If it is all there, the job pulls nothing any more."""
        nodes = self._cache.match(job.keys)
        wanted = min(self.named(job) - len(nodes), self._cache.total // SHARE)
        if wanted <= 0:
            job.pull = None
        elif job.keys[len(nodes)] not in self._keys and wanted <= self._room(nodes, running):
            job.waits += 1
            return self._begin(job.keys[: len(nodes) + wanted], nodes, wanted)
        return None

    def ahead(self, keys: list[int], running: int) -> Flight | None:
        """Blocks that nobody waits for; None where they are on their way, or there is no room beside what
        somebody asks for."""
        nodes = self._cache.match(keys)
        blocks = min(len(keys) - len(nodes), self._room(nodes, running), self._cache.total // AHEAD_SHARE)
        if blocks <= 0 or len(self._wanted) + blocks > self._cache.total or keys[len(nodes)] in self._keys:
            return None
        return self._begin(keys[: len(nodes) + blocks], nodes, blocks)

    def land(self, flight: Flight, come: int, job: Job | None = None) -> int:
        """The end of a flight: ``come`` blocks of it did. How many of them were not there."""
        self._flying -= flight.blocks
        self._forget(flight.keys[len(flight.nodes) :])
        self._cache.give(flight.blocks)
        came = self._cache.take_in(flight.keys[: len(flight.nodes) + come])
        self._cache.unpin(flight.nodes)
        if job is not None:
            job.waits -= 1
            job.pull = None
            job.pulled = job.landed = came
            self._landed += came
        return came

    def admitted(self, job: Job) -> None:
        """What came for it is no longer kept for it."""
        self._landed -= job.landed
        job.landed = 0
        job.pull = None

    def _room(self, nodes: list[Node], running: int) -> int:
        """How many blocks a flight that continues ``nodes`` may take. If all that is asked for does not fit,
        there is one flight at a time: each displaces what others wait for."""
        if len(self._wanted) > self._cache.total and self._flying:
            return 0
        spare = self._cache.available - sum(not node.pins for node in nodes) - running
        return min(self._cache.total // SHARE - self._flying - self._landed, spare)

    def _begin(self, keys: list[int], nodes: list[Node], blocks: int) -> Flight:
        self._cache.pin(nodes)
        self._cache.take(blocks)
        self._flying += blocks
        self._keys.update(keys[len(nodes) :])
        return Flight(keys, nodes, blocks)

    # ---- from host memory

    def expect(self, job: Job, blocks: int) -> None:
        """Its first blocks are being brought."""
        job.waits += 1
        self._keys.update(job.keys[:blocks])

    def arrive(self, job: Job, expected: int, blocks: int) -> int:
        """The end of what was expected: ``blocks`` have come, 0 or all. How many have become readable: as
        many as there is room for."""
        job.waits -= 1
        self._forget(job.keys[:expected])
        return self._cache.take_in(job.keys[:blocks])

    def _forget(self, keys: Sequence[int]) -> None:
        self._keys.subtract(keys)
        self._keys += Counter()  # only what is left
