"""What is left of a queue, against computing it token by token."""

from hypothesis import given
from hypothesis import strategies as st
from warmfleet_router.prices.ahead import Ahead
from warmfleet_router.prices.pricing import Prefills

prompts = st.lists(st.tuples(st.integers(1, 30), st.integers(0, 40)), min_size=1, max_size=6)


def counted(rest: list[list[int]]) -> Prefills:
    """``rest``: of each prompt the contexts of the tokens that are not computed yet."""
    left = [contexts for contexts in rest if contexts]
    return Prefills(len(left), sum(map(len, left)), sum(2 * c + 1 for contexts in left for c in contexts))


@given(prompts, st.data())
def test_the_first_tokens_of_the_oldest_prompt_go_first(
    queue: list[tuple[int, int]], data: st.DataObject
) -> None:
    ahead = Ahead()
    for booking, (uncached, context) in enumerate(queue):
        ahead.join(booking, uncached, context)
    gone = data.draw(st.sets(st.integers(0, len(queue))))
    for booking in gone:
        ahead.leave(booking)
    rest = [list(range(c, c + u)) for booking, (u, c) in enumerate(queue) if booking not in gone]
    assert ahead.sums == counted(rest)
    for left in range(ahead.sums.tokens, -1, -1):
        assert ahead.left(left) == counted(rest)
        contexts = next((contexts for contexts in rest if contexts), [])
        del contexts[:1]
