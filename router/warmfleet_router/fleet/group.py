"""Workers whose KV means the same: one model fingerprint and block size, one index."""

from array import array
from collections.abc import Collection
from collections.abc import Set as AbstractSet
from math import exp, inf

from warmfleet_proto.errors import Rejected

from warmfleet_router.fleet.fleet import usable
from warmfleet_router.fleet.worker import Worker
from warmfleet_router.index.index import Index
from warmfleet_router.index.prefixes import BookedPrefixes
from warmfleet_router.policy.base import Pool
from warmfleet_router.policy.ring import Ring
from warmfleet_router.prices.demand import Demand
from warmfleet_router.prices.links import Links
from warmfleet_router.prices.pressure import Pressure
from warmfleet_router.prices.pricing import shared_prefill, starting_rates
from warmfleet_router.prices.traffic import MEMORY_S, Traffic
from warmfleet_router.prices.wanted import Wanted

LEND_AGAIN = 1.1  # times as many measurements as at the last time: it costs microseconds a worker
FLYING_S = 1e-3  # a request in flight, as load beside seconds of queue: breaks ties between idle workers


class Group:
    """A group's workers, its index, and all that is learned of them together. A worker's ``slot`` is its
    number in the index."""

    def __init__(
        self, fingerprint: bytes, block_size: int, index_blocks: int, link_bytes_per_s: float = 0.0
    ) -> None:
        self.fingerprint = fingerprint
        self.block_size = block_size
        self.index = Index(index_blocks)
        self.prefixes = BookedPrefixes(block_size)
        self.workers: dict[int, Worker] = {}  # by slot
        self.loads = array("d")  # by slot, seconds; infinite where none may be placed
        self.traffic = Traffic()
        self.prefill = shared_prefill()
        self.links = Links(link_bytes_per_s)
        self.pressure = Pressure()
        self.demand = Demand(block_size)
        self.wanted = Wanted(fingerprint, block_size)
        self.panic = False
        self.gives_blocks = False  # some worker gives blocks to peers
        self.copies_ahead = False  # hot prefixes are copied before requests come for them
        self._faded_at = 0.0
        self._measurements = 0
        self._lend_at = 0.0
        self._partial: frozenset[str] = frozenset()  # names that not every worker answers to
        self.pool = Pool((), frozenset(), Ring(), 0)
        self.least_context = 0  # of the pool's workers
        self.most_context = 0  # of all workers
        self.total_blocks = 0
        self.token_bytes = 0.0  # of KV, a token

    def add(self, worker: Worker) -> None:
        """Raises Rejected when the index takes no more workers."""
        try:
            worker.slot = self.index.add_worker()
        except ValueError as error:
            raise Rejected(str(error)) from None
        self.loads.extend([inf] * (worker.slot + 1 - len(self.loads)))
        self.workers[worker.slot] = worker
        self.token_bytes = worker.identity.token_bytes if worker.identity else 0.0
        self.pool.ring.add(worker)

    def remove(self, worker: Worker) -> None:
        """All that the index holds of it is gone at once."""
        self.index.remove_worker(worker.slot)
        del self.workers[worker.slot]
        self.loads[worker.slot] = inf
        self.pool.ring.remove(worker)
        worker.slot = -1

    def refresh(self, now: float) -> None:
        """Decides who may be placed on. To be called when time has passed or a worker's state has changed."""
        self._fade(now)
        workers, self.panic = usable(list(self.workers.values()), now)
        self.loads = array("d", [inf]) * len(self.loads)
        for worker in workers:
            worker.settle()
            self.loads[worker.slot] = _load_s(worker)
        self.pool = Pool(workers, frozenset(workers), self.pool.ring, sum(w.flying for w in workers))
        self._partial = _partial(self.workers.values())
        self.least_context = min((_context(w) for w in workers), default=0)
        self.most_context = max((_context(w) for w in self.workers.values()), default=0)
        self.gives_blocks = any(w.identity and w.identity.gives_blocks for w in self.workers.values())
        self.total_blocks = sum(w.identity.total_blocks for w in workers if w.identity)

    def _fade(self, now: float) -> None:
        """Work placed lately counts less as time passes: 1/e of it is left after MEMORY_S."""
        keep = exp(-max(now - self._faded_at, 0.0) / MEMORY_S)
        self._faded_at = now
        for worker in self.workers.values():
            worker.given_s *= keep

    def settle(self, worker: Worker) -> None:
        """Keeps the pool up. To be called after a change of one worker's load."""
        before = worker.flying
        worker.settle()
        if worker in self.pool.members:
            self.loads[worker.slot] = _load_s(worker)
            self.pool.in_flight += worker.flying - before

    def lend_rates(self) -> None:
        """Prices workers that have not been measured like those that have: a guess must be no bargain.

        To be called at every measurement; it does something at the first few, then after every tenth more.
        """
        self._measurements += 1
        if self._measurements < self._lend_at:
            return
        self._lend_at = LEND_AGAIN * self._measurements
        unknown = [worker for worker in self.workers.values() if not worker.rates.measured]
        if not unknown:
            return
        rates = starting_rates((w.rates for w in self.workers.values()), self.prefill)
        for worker in unknown:
            worker.rates = rates.lent()
            self.settle(worker)

    def pool_for(self, context: int, exclude: AbstractSet[str], model: str) -> Pool:
        """The part of the pool that serves ``model``, takes ``context`` tokens and is not in ``exclude``."""
        if context <= self.least_context and not exclude and model not in self._partial:
            return self.pool
        workers = [w for w in self.pool.workers if _context(w) >= context and w.name not in exclude]
        if model in self._partial:
            workers = [w for w in workers if model == _model(w) or model in w.models]
        return Pool(workers, frozenset(workers), self.pool.ring, sum(w.flying for w in workers))


def _context(worker: Worker) -> int:
    assert worker.identity is not None  # or it would not be in a group
    return worker.identity.max_context


def _model(worker: Worker) -> str:
    assert worker.identity is not None
    return worker.identity.model


def _partial(workers: Collection[Worker]) -> frozenset[str]:
    """Names that not every worker of a group answers to: further ones, which may come and go, and the model's
    own where workers serve equal weights under different names."""
    further, own = frozenset().union(*(w.models for w in workers)), frozenset(map(_model, workers))
    return further | own if len(own) > 1 else further - own


def _load_s(worker: Worker) -> float:
    return worker.queue_until - worker.queue_from + worker.rest_s + FLYING_S * worker.flying
