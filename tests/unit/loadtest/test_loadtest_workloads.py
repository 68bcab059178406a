import itertools
import random
from collections import Counter

from loadtest.workloads import AgentShape, ChatShape, Turn, agent, around, chat, offered, poisson, tokens


def sent_before(turns: list[Turn]) -> list[int]:
    """Plainly: how many leading messages of each turn an earlier turn began with."""
    seen: set[tuple[object, ...]] = set()
    counts = []
    for turn in turns:
        prefixes = [turn.messages[:n] for n in range(1, len(turn.messages) + 1)]
        counts.append(sum(prefix in seen for prefix in prefixes))
        seen.update(prefixes)
    return counts


def test_the_same_seed_gives_the_same_workload_and_another_seed_another() -> None:
    assert agent(5, 20, seed=1) == agent(5, 20, seed=1) != agent(5, 20, seed=2)
    assert chat(5, 20, seed=1) == chat(5, 20, seed=1) != chat(5, 20, seed=2)


def test_turns_are_sorted_inside_the_window_and_come_at_the_rate() -> None:
    for turns in (agent(20, 100, seed=3), chat(20, 100, seed=3)):
        times = [turn.at for turn in turns]
        assert times == sorted(times)
        assert times[0] >= 0
        assert times[-1] < 100
        assert 0.85 < len(turns) / 2000 < 1.15


def test_chat_is_as_busy_in_its_first_seconds_as_later() -> None:
    turns = chat(50, 120, seed=4)
    quarters = Counter(int(turn.at // 30) for turn in turns)
    assert max(quarters.values()) < 1.25 * min(quarters.values())


def test_what_counts_as_reusable_has_been_sent_before() -> None:
    for turns in (agent(10, 60, seed=5), chat(10, 60, seed=5)):
        assert [turn.reusable for turn in turns] == sent_before(turns)


def test_a_conversation_grows_by_an_answer_and_a_question() -> None:
    turns = chat(2, 60, seed=6, shape=ChatShape(turns=4))
    by_conversation: dict[int, list[Turn]] = {}
    for turn in turns:
        by_conversation.setdefault(turn.conversation, []).append(turn)
    grown = [(a, b) for many in by_conversation.values() for a, b in itertools.pairwise(many)]
    assert grown
    for earlier, later in grown:
        assert later.messages[: len(earlier.messages)] == earlier.messages
        assert [m.role for m in later.messages[len(earlier.messages) :]] == ["assistant", "user"]


def test_agents_ask_on_few_prefixes_of_very_unequal_popularity_and_length() -> None:
    turns = agent(20, 100, seed=7, shape=AgentShape(prefixes=10, shortest=100, longest=2000))
    popularity = Counter(turn.messages[0] for turn in turns).most_common()
    assert len(popularity) == 10
    assert popularity[0][1] > 4 * popularity[-1][1]
    lengths = sorted(m.words for m, _ in popularity)
    assert (lengths[0], lengths[-1]) == (100, 2000)
    assert all(len(m.content.split()) == m.words for m, _ in popularity)


def test_offered_counts_each_text_once() -> None:
    turns = agent(5, 40, seed=8)
    load = offered(turns, "demo")
    texts = {turn.messages[0] for turn in turns} | {turn.messages[1] for turn in turns}
    new = sum(m.words for m in texts)
    assert new <= load.uncached <= new * 1.05
    assert load.prompt == sum(tokens(turn.messages) for turn in turns)
    assert 0.85 < load.hit_rate < 1
    assert offered(turns, "byte").prompt > 4 * load.prompt


def test_body_is_a_streamed_chat_with_usage() -> None:
    turn = chat(5, 20, seed=9)[0]
    body = turn.body("demo")
    assert body["messages"][0] == {"role": "system", "content": turn.messages[0].content}
    assert (body["stream"], body["stream_options"]) == (True, {"include_usage": True})
    assert "stream" not in turn.body("demo", stream=False)


def test_poisson_gaps_have_the_mean_and_the_spread_of_an_exponential() -> None:
    times = list(poisson(random.Random(10), rate=10, duration=1000))
    gaps = [b - a for a, b in itertools.pairwise(times)]
    average = sum(gaps) / len(gaps)
    variance = sum((g - average) ** 2 for g in gaps) / len(gaps)
    assert 0.095 < average < 0.105
    assert 0.9 < variance / average**2 < 1.1


def test_around_keeps_its_mean() -> None:
    rng = random.Random(11)
    drawn = [around(rng, 60) for _ in range(4000)]
    assert (min(drawn), max(drawn)) == (20, 100)
    assert 58 < sum(drawn) / len(drawn) < 62
