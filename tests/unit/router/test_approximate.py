"""The model of a cache that nobody announces, against a real one."""

from array import array
from random import Random

import pytest
from warmfleet_router.index import approximate
from warmfleet_router.index.approximate import Approximate
from warmfleet_router.replay.cache import Cache

PROMPT = 40


class Truth:
    """A worker's cache as it is, asked one prompt after another."""

    def __init__(self, blocks: int) -> None:
        self.cache = Cache(blocks)
        self.index: set[int] = set()  # what the model has told

    def serve(self, keys: list[int]) -> int:
        """Blocks that were there."""
        nodes = self.cache.match(keys)
        found = len(nodes)
        self.cache.pin(nodes)
        for key in keys[found:]:
            assert self.cache.take(1)
            nodes.append(self.cache.seal(key, nodes[-1] if nodes else None)[0])
        self.cache.unpin(reversed(nodes))
        return found


def used(guess: Approximate, keys: list[int]) -> list[int]:
    return memoryview(guess.used(keys, array("Q", keys).tobytes())).cast("Q").tolist()


def conversations(random: Random, people: int) -> list[int]:
    """One turn of somebody: a shared root, a trunk of their own, longer from turn to turn."""
    person = min(int(random.expovariate(4.0 / people)), people - 1)
    return [*range(5), *(1000 * (person + 1) + i for i in range(random.randrange(10, PROMPT)))]


def drive(guess: Approximate, truth: Truth, turns: int, seed: int = 0) -> tuple[int, int, int]:
    """Blocks asked, there, and taken to be there."""
    random, asked, there, believed = Random(seed), 0, 0, 0
    index = truth.index
    for _ in range(turns):
        keys = conversations(random, 400)
        found = truth.serve(keys)
        held = next((n for n, key in enumerate(keys) if key not in index), len(keys))
        asked, there, believed = asked + len(keys), there + found, believed + held
        guess.delivered(keys, found, guess.clock)
        index |= set(keys)
        index -= set(used(guess, keys))
        assert len(index) == len(guess) <= max(guess.capacity, len(keys))
    return asked, there, believed


def test_with_the_right_capacity_it_is_the_cache() -> None:
    guess = Approximate(3000)
    asked, there, believed = drive(guess, Truth(3000), 4000)
    assert 0.5 < there / asked < 0.95
    assert believed == pytest.approx(there, rel=0.01)
    assert guess.capacity == pytest.approx(3000, rel=0.05)
    assert guess.confidence > 0.95


@pytest.mark.parametrize("told", [0, 300, 1000, 9000, 30_000])
def test_a_false_capacity_is_found_out(told: int) -> None:
    guess, truth = Approximate(told), Truth(3000)
    drive(guess, truth, 4000)
    assert guess.capacity == pytest.approx(3000, rel=0.15)
    _, there, believed = drive(guess, truth, 2000, seed=1)
    assert believed == pytest.approx(there, rel=0.03)


def test_confidence_follows_what_is_delivered() -> None:
    guess = Approximate(1000)
    for number in range(60):
        keys = [*range(10), 100 + number]
        guess.delivered(keys, 5 if number else 0, since=0)  # used meanwhile: says nothing of the size
        used(guess, keys)
    assert guess.confidence == pytest.approx(0.5, abs=0.01)
    assert guess.capacity == 1000


def test_a_restart_forgets_blocks_and_keeps_the_size() -> None:
    guess = Approximate(0)
    drive(guess, Truth(3000), 3000)
    size = guess.capacity
    guess.forget()
    assert len(guess) == 0
    assert used(guess, [1, 2, 3]) == []
    assert (len(guess), guess.capacity) == (3, size)


def test_a_prompt_longer_than_the_cache_leaves_its_head() -> None:
    guess = Approximate(16)
    assert used(guess, list(range(20))) == [19, 18, 17, 16]


def test_long_conversations_are_followed_in_units() -> None:
    """Tens of thousands of blocks in a few hundred steps, at the price of a few blocks of error."""
    random, guess, truth = Random(5), Approximate(0), Truth(30_000)
    turns = [[*range(20), 1000 * n] for n in range(1, 30)]
    there = believed = 0
    for number in range(1500):
        person = min(int(random.expovariate(0.2)), 28)
        keys = turns[person] = [
            *turns[person],
            *(random.getrandbits(63) for _ in range(random.randrange(90))),
        ]
        if len(keys) > 5000:
            turns[person] = [*range(20), random.getrandbits(63)]
        found = truth.serve(keys)
        held = next((n for n, key in enumerate(keys) if key not in truth.index), len(keys))
        if number > 750:
            there, believed = there + found, believed + held
        guess.delivered(keys, found, guess.clock)
        truth.index |= set(keys)
        truth.index -= set(used(guess, keys))
    assert believed == pytest.approx(there, rel=0.03)
    assert guess.capacity == pytest.approx(30_000, rel=0.2)
    assert len(guess._held) < 0.2 * len(guess)


@pytest.mark.parametrize("root", [63, 70, 187, 300])
def test_of_prompts_that_part_within_a_unit_what_is_before_that_stays_with_the_last(root: int) -> None:
    """Where nothing fits any more each newcomer displaces one that shares a block of a unit with it."""
    random, guess, index = Random(root), Approximate(root + 200), set[int]()
    talks = [[*range(root), *(random.getrandbits(63) for _ in range(40))] for _ in range(30)]
    for number in range(300):
        talk = random.choice(talks[number // 20 : number // 20 + 10])
        keys = talk[: random.randrange(root - 3, len(talk) + 1)]
        index |= set(keys)
        index -= set(used(guess, keys))
        assert index == {key for unit in guess._held.values() for key in unit.each}
        assert index.issuperset(keys)
    assert len(guess._begun) <= len(guess._held)
    guess.capacity = 0
    assert set(guess_gone(guess)) == index
    assert not guess._begun


def guess_gone(guess: Approximate) -> list[int]:
    """All that it held."""
    return memoryview(guess._evict()).cast("Q").tolist()


def test_a_small_world_takes_no_more_memory_for_being_used_again_and_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(approximate, "MOST_BUCKETS", 40)
    guess = Approximate(10_000)
    used(guess, [1001, 1002, 1003])
    since = []
    for number in range(500):
        used(guess, [*range(100, 130), number % 7])
        since.append(guess.clock)
        assert sum(guess._counts) == len(guess)
    assert since == sorted(since)
    assert len(guess._counts) <= 41
    assert guess._distance(guess._held[1003].bucket) == 30 + 7 + 1  # half of the three
    assert guess._held[129].bucket == guess.clock
