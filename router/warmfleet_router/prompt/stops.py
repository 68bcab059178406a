"""Stop strings in a stream of text, wherever its pieces are cut."""

from collections.abc import Sequence


class StopScanner:
    """Ends the text where a stop string is complete, and never lets a part of one out before.

    The first stop to be complete ends the text; of several complete at once the longest counts, so
    that the answer does not depend on where the pieces are cut. Linear in the text (Knuth, Morris
    and Pratt), whatever the stops.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [(stop, _fallbacks(stop)) for stop in sorted(set(stops), key=len, reverse=True)]
        self._matched = [0] * len(self._stops)  # characters of each stop that the text ends with
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """(text to send now, whether a stop string was met). After a stop, push no more."""
        if not self._stops:
            return text, False
        before = len(self._held)
        seen = self._held + text
        for at, char in enumerate(text, before + 1):
            if stop := self._advance(char):
                self._held = ""
                return seen[: at - len(stop)], True
        sent = len(seen) - max(self._matched)
        self._held = seen[sent:]
        return seen[:sent], False

    def flush(self) -> str:
        """The held-back text, once the completion has ended without a stop string."""
        held, self._held = self._held, ""
        return held

    def _advance(self, char: str) -> str | None:
        """The longest stop that ``char`` completes."""
        found = None
        for index, (stop, fallbacks) in enumerate(self._stops):
            matched = self._matched[index]
            while matched and stop[matched] != char:
                matched = fallbacks[matched - 1]
            if stop[matched] == char:
                matched += 1
            if matched == len(stop):
                found = found or stop
                matched = fallbacks[-1]
            self._matched[index] = matched
        return found


def _fallbacks(stop: str) -> list[int]:
    """fallbacks[i]: length of the longest proper prefix of stop[: i + 1] that is its suffix too."""
    fallbacks, matched = [0], 0
    for char in stop[1:]:
        while matched and stop[matched] != char:
            matched = fallbacks[matched - 1]
        matched += stop[matched] == char
        fallbacks.append(matched)
    return fallbacks
