"""When the garbage collector runs: while a program is idle, instead of in the middle of a request.

Reference counts free nearly everything; the collector is for cycles, which only failures leave behind.
Python runs it whenever enough more objects have come than gone. Under a steady load as many go as come, so
that is late, and what has come in the meantime is nearly everything that is alive: a pause of milliseconds
within some placement. So a program lets Python's own schedule go and looks at that same count once a second:
when idle it collects after a little of it, else only when the count could mean tens of megabytes.

What has come lately is looked through alone. All else is once in a while, when a part as large has come
since: beside engines it may be millions of objects, which take half a second.
"""

import asyncio
import gc
import time

PERIOD_S = 1.0
IDLE_SHARE = 0.05  # of a core, used over a period
WHEN_IDLE = 1_000  # objects that may be garbage: fewer are not worth a look
WHEN_BUSY = 200_000  # tens of megabytes
GROWTH = 0.25  # of what is alive, after which all of it is looked through
LATELY, ALL = 1, 2  # generations


class Collector:
    """Python's collector, told when to run. ``now``: monotonic seconds; ``cpu_s``: used by the process."""

    def __init__(self, now: float, cpu_s: float) -> None:
        """Collects once, and sets aside all that is there now: it stays. From here on garbage is collected
        only in ``turn``."""
        self._now, self._cpu_s = now, cpu_s
        self._alive = self._grown = 0  # objects: when all were looked through, and those that came since
        gc.collect()
        gc.freeze()
        gc.disable()

    def turn(self, now: float, cpu_s: float) -> bool:
        """To be called about every PERIOD_S; whether it collected."""
        idle = cpu_s - self._cpu_s <= IDLE_SHARE * (now - self._now)
        self._now, self._cpu_s = now, cpu_s
        grown = gc.get_count()[0]  # containers made less containers freed, since the last collection
        if grown < (WHEN_IDLE if idle else WHEN_BUSY):
            return False
        self._grown += grown
        if self._grown < max(WHEN_BUSY, GROWTH * self._alive):
            self._grown -= gc.collect(LATELY)
        else:
            self._alive, self._grown = self._alive + self._grown - gc.collect(ALL), 0
        return True

    def close(self) -> None:
        """Back to Python's own schedule."""
        gc.enable()
        gc.unfreeze()


async def collecting() -> None:
    """Takes its turns until it is cancelled."""
    collector = Collector(time.monotonic(), time.process_time())
    try:
        while True:
            await asyncio.sleep(PERIOD_S)
            collector.turn(time.monotonic(), time.process_time())
    finally:
        collector.close()
