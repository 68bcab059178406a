"""The index: which worker holds which block, in which tier.

The blocks are kept in C where that was built, else by a Python twin, which defines what C must answer. The
twin is many times slower and takes more memory: the admin page and the log show which one runs (``native``).
"""

from warmfleet_router.index.seats import Seats

try:
    from warmfleet_router._native import Presence, offers  # noqa: F401 - an older build has no offers
except ImportError:  # installed without a compiler
    from warmfleet_router.index.index_python import Presence

native: bool = Presence.__module__ == "warmfleet_router._native"


class Index(Presence, Seats):
    """Presence of blocks in the workers' tiers, bounded at ``cap`` blocks; one thread owns it.

    True below the cap; above it a subset of the truth, and ``gaps`` counts the blocks given up.
    Workers are the small numbers that ``add_worker`` returns. ``keys`` are packed 8-byte keys.
    ``ValueError`` for arguments out of their range, ``IndexError`` for a worker that is not there.
    """

    def __init__(self, cap: int = 1_000_000) -> None:
        Presence.__init__(self, cap)
        Seats.__init__(self)
