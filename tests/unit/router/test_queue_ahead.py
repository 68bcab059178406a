"""What is left of a queue, against computing it token by token."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from warmfleet_router.prices import ahead as module
from warmfleet_router.prices.ahead import Ahead
from warmfleet_router.prices.pricing import Prefills

prompts = st.tuples(st.integers(1, 30), st.integers(0, 40))
steps = st.lists(prompts | st.integers(0, 9), min_size=1, max_size=30)  # one joins, or one leaves


def counted(queue: dict[int, tuple[int, int]], tokens: int) -> Prefills:
    """By the contexts of the tokens that are not computed yet."""
    rest = [list(range(context, context + uncached)) for uncached, context in queue.values()]
    for _ in range(sum(map(len, rest)) - tokens):
        del next(contexts for contexts in rest if contexts)[0]
    left = [contexts for contexts in rest if contexts]
    return Prefills(len(left), sum(map(len, left)), sum(2 * c + 1 for contexts in left for c in contexts))


@given(steps, st.data())
def test_the_first_tokens_of_the_oldest_prompt_go_first(
    changes: list[tuple[int, int] | int], data: st.DataObject
) -> None:
    ahead, queue = Ahead(), dict[int, tuple[int, int]]()
    for booking, change in enumerate(changes):
        if isinstance(change, tuple):
            ahead.join(booking, *change)
            queue[booking] = change
        else:
            gone = sorted(queue)[change % len(queue)] if queue else booking
            ahead.leave(gone)
            queue.pop(gone, None)
        assert [booking in ahead for booking in range(len(changes))] == [
            b in queue for b in range(len(changes))
        ]
        assert ahead.sums == counted(queue, ahead.sums.tokens)
        tokens = data.draw(st.integers(0, ahead.sums.tokens))
        assert ahead.left(tokens) == counted(queue, tokens)


def test_only_what_has_changed_is_walked_over(monkeypatch: pytest.MonkeyPatch) -> None:
    ahead, counts = Ahead(), []

    class Counting(Prefills):
        def count(self, *args: Any) -> None:
            counts.append(1)
            super().count(*args)

    monkeypatch.setattr(module, "Prefills", Counting)
    ahead = Ahead()
    for booking in range(1000):
        ahead.join(booking, 10, 0)
    ahead.left(5)
    counts.clear()
    for booking in range(100):  # the worker names another, one of the oldest has its first token
        ahead.join(1000 + booking, 10, 0)
        ahead.leave(booking)
        ahead.left(5 + 10 * booking)
    assert len(counts) < 1000
