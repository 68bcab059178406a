"""The memory that blocks pass through on their way: its size is the bound on bytes in flight.

Pulls share it evenly: each may hold its part of the slabs, and gives back what exceeds it as soon as it has
landed what was asked for, so a late one finds some. Used from the transports' threads.
"""

from collections import Counter
from collections.abc import Callable
from threading import Condition

Owner = object


class Slabs:
    """``count`` slabs of ``size`` bytes, made when they are first needed. ``allocate`` may pin them."""

    def __init__(
        self,
        count: int,
        size: int,
        allocate: Callable[[int], memoryview] = lambda n: memoryview(bytearray(n)),
    ) -> None:
        assert count > 0
        self.size = size
        self._count = count
        self._made = 0
        self._allocate = allocate
        self._spare: list[memoryview] = []
        self._held: Counter[Owner] = Counter()
        self._owners: set[Owner] = set()
        self._change = Condition()

    @property
    def taken(self) -> int:
        return self._made - len(self._spare)

    def join(self, owner: Owner) -> bool:
        """False when there are as many owners as slabs already."""
        with self._change:
            if len(self._owners) == self._count:
                return False
            self._owners.add(owner)
            return True

    def leave(self, owner: Owner) -> None:
        """Wakes who waits in ``take`` for it; what it holds still has to be given back."""
        with self._change:
            self._owners.discard(owner)
            self._change.notify_all()

    def take(self, owner: Owner) -> memoryview | None:
        """A slab, waited for; None when the owner has left."""
        with self._change:
            while owner in self._owners:
                if self._held[owner] < self._share() and (slab := self._next()) is not None:
                    self._held[owner] += 1
                    return slab
                self._change.wait()
            return None

    def exceeded(self, owner: Owner) -> bool:
        """Whether it holds more than its part by now."""
        with self._change:
            return owner in self._owners and self._held[owner] > self._share()

    def give_back(self, owner: Owner, slab: memoryview) -> None:
        with self._change:
            self._held[owner] -= 1
            if not self._held[owner]:
                del self._held[owner]
            self._spare.append(slab)
            self._change.notify_all()

    def _share(self) -> int:
        return -(-self._count // len(self._owners))

    def _next(self) -> memoryview | None:
        if self._spare:
            return self._spare.pop()
        if self._made == self._count:
            return None
        slab = self._allocate(self.size)  # may fail, and be tried again
        self._made += 1
        return slab
