"""The booked prompts that a worker has in its queue, in the order in which it computes them."""

from collections import OrderedDict

from warmfleet_router.prices.pricing import Prefills


class Ahead:
    """``sums`` of all of them, each as long as was expected when it was placed."""

    __slots__ = ("_left", "_past", "_rest", "sums")

    def __init__(self) -> None:
        self.sums = Prefills()
        # By booking, tokens to compute and cached before. What is left is asked for again, at nearly
        # the same place: what lies before it is kept apart, so that only what has changed is walked over.
        self._past: OrderedDict[int, tuple[int, int]] = OrderedDict()
        self._rest: OrderedDict[int, tuple[int, int]] = OrderedDict()
        self._left = Prefills()  # sums of the rest

    def __contains__(self, booking: int) -> bool:
        return booking in self._rest or booking in self._past

    def join(self, booking: int, uncached: int, context: int) -> None:
        self._rest[booking] = uncached, context
        self.sums.count(uncached, context, 1)
        self._left.count(uncached, context, 1)

    def leave(self, booking: int) -> None:
        """If it is there."""
        prompt = self._rest.pop(booking, None)
        if prompt is not None:
            self._left.count(*prompt, -1)
        else:
            prompt = self._past.pop(booking, None)
        if prompt is not None:
            self.sums.count(*prompt, -1)

    def left(self, tokens: int) -> Prefills:
        """Sums of what is left when ``tokens`` remain of all: the oldest prompts are computed first, and of
        each the tokens that need least attention."""
        begun = self._seek(tokens)
        left = Prefills(self._left.prompts, self._left.tokens, self._left.pairs)
        if begun > 0:
            _, context = next(iter(self._rest.values()))
            left.count(begun, context, -1)
            left.prompts += 1  # begun, not over
        return left

    def _seek(self, tokens: int) -> int:
        """Moves on, or back, to where ``tokens`` remain; so many of the first prompt there are computed."""
        past, rest, left = self._past, self._rest, self._left
        while past and left.tokens < tokens:
            booking, prompt = past.popitem()
            rest[booking] = prompt
            rest.move_to_end(booking, last=False)
            left.count(*prompt, 1)
        while rest:
            booking, prompt = next(iter(rest.items()))
            if left.tokens - tokens < prompt[0]:
                break
            past[booking] = rest.pop(booking)
            left.count(*prompt, -1)
        return left.tokens - tokens
