"""Consistent hashing: the worker that a key belongs to, with a bound on load.

Routers that know the same workers name the same home without talking.
"""

from array import array
from bisect import bisect_left
from collections.abc import Container, Sequence
from operator import itemgetter

import xxhash
from uhashring import HashRing

from warmfleet_router.fleet.worker import Worker

POINTS = 64  # on the ring, a worker


def homes_python(
    points: Sequence[int],
    owners: Sequence[Worker],
    keys: Sequence[int],
    members: Container[Worker],
    most: float,
) -> list[Worker | None]:
    """The home of each key: the first of ``members`` from its place on that has at most ``most`` requests in
    flight; if none has, the first member."""
    homes = []
    for key in keys:
        start, home = bisect_left(points, key), None
        for i in range(start - len(owners), start):  # from there on, and round
            worker = owners[i]
            if worker in members:
                if worker.flying <= most:
                    home = worker
                    break
                home = home or worker
        homes.append(home)
    return homes


try:
    from warmfleet_router._native import homes
except ImportError:  # installed without a compiler
    homes = homes_python


class Ring:
    """Keys and points are 64-bit numbers; keys are taken as they are, being hashes already."""

    def __init__(self) -> None:
        self._marks: dict[Worker, list[int]] = {}  # each worker's points: nobody else's come or go with it
        self._points = array("Q")  # in one piece of memory: a search reads a dozen of thousands
        self._owners: list[Worker] = []

    def add(self, worker: Worker) -> None:
        ring = HashRing([worker.name], hash_fn=_point, vnodes=POINTS)
        self._marks[worker] = [point for point, _ in ring.get_points()]
        self._points = array("Q")

    def remove(self, worker: Worker) -> None:
        del self._marks[worker]
        self._points = array("Q")

    def home(self, key: int, members: Container[Worker], most: float) -> Worker | None:
        return self.homes([key], members, most)[0]

    def homes(self, keys: list[int], members: Container[Worker], most: float) -> list[Worker | None]:
        """The home of each key: the first of ``members`` from its place on that has at most ``most`` requests
        in flight; if none has, the first member; None if there are no members."""
        if not self._points:
            self._unroll()
        return homes(self._points, self._owners, keys, members, most)

    def _unroll(self) -> None:
        points = [(point, worker) for worker, marks in self._marks.items() for point in marks]
        points.sort(key=itemgetter(0))
        self._points = array("Q", [point for point, _ in points])
        self._owners = [worker for _, worker in points]


def _point(text: str) -> int:
    return xxhash.xxh64_intdigest(text.encode())
