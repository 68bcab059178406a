"""How often requests may be tried on another worker: a share of the traffic, not a multiple of it."""

from collections import deque

RATIO = 0.2
FREE_PER_S = 5.0
WINDOW_S = 10.0


class RetryBudget:
    """Retries within the last WINDOW_S: RATIO of the requests plus FREE_PER_S a second.

    Of those whose worker is lost as many as prompts are ``under_way``, where that is more: it may have had
    most of them. What is refused stays within the share: most is under way where the fleet is overloaded.
    """

    def __init__(self) -> None:
        self.under_way = 0
        self._requests: deque[float] = deque()
        self._retries: deque[float] = deque()

    def request(self, now: float) -> None:
        self._forget(now)
        self._requests.append(now)

    def take(self, now: float, lost: bool = False) -> bool:
        """Whether one more retry is allowed; it counts if so. ``lost``: its worker is."""
        self._forget(now)
        allowed = RATIO * len(self._requests) + FREE_PER_S * WINDOW_S
        if len(self._retries) + 1 > (max(allowed, self.under_way) if lost else allowed):
            return False
        self._retries.append(now)
        return True

    def _forget(self, now: float) -> None:
        for times in (self._requests, self._retries):
            while times and times[0] <= now - WINDOW_S:
                times.popleft()
