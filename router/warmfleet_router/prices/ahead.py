"""The booked prompts that a worker has in its queue, in the order in which it computes them."""

from warmfleet_router.prices.pricing import Prefills


class Ahead:
    """``sums`` of all of them, each as long as was expected when it was placed."""

    __slots__ = ("_prompts", "sums")

    def __init__(self) -> None:
        self.sums = Prefills()
        self._prompts: dict[int, tuple[int, int]] = {}  # by booking: to compute, and cached before

    def __contains__(self, booking: int) -> bool:
        return booking in self._prompts

    def join(self, booking: int, uncached: int, context: int) -> None:
        self._prompts[booking] = uncached, context
        self.sums.count(uncached, context, 1)

    def leave(self, booking: int) -> None:
        """If it is there."""
        prompt = self._prompts.pop(booking, None)
        if prompt is not None:
            self.sums.count(*prompt, -1)

    def left(self, tokens: int) -> Prefills:
        """Of all, when ``tokens`` remain: the oldest go first, and of each what needs least attention."""
        done, sums = self.sums.tokens - tokens, self.sums
        left = Prefills(sums.prompts, sums.tokens, sums.pairs)
        for uncached, context in self._prompts.values():
            if done < uncached:
                left.count(max(done, 0), context, -1)
                left.prompts += 1  # begun, not over
                break
            left.count(uncached, context, -1)
            done -= uncached
        return left
