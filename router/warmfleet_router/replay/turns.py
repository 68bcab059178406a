"""Turns of conversations, one at a time: who asks waits for the answer to the question before."""

from collections import deque

from warmfleet_router.replay.trace import Request


class Turns:
    def __init__(self) -> None:
        self._held: dict[int, deque[Request]] = {}  # of each conversation that waits for an answer

    def come(self, request: Request) -> bool:
        """Whether it is sent now; else ``ended`` gives it back when its turn has come."""
        if request.conversation is None:
            return True
        held = self._held.get(request.conversation)
        if held is None:
            self._held[request.conversation] = deque()
            return True
        held.append(request)
        return False

    def ended(self, request: Request) -> Request | None:
        """One that had been sent; the next of its conversation, if that was held back: sent now."""
        if request.conversation is None:
            return None
        held = self._held[request.conversation]
        if held:
            return held.popleft()
        del self._held[request.conversation]
        return None
