"""Answers in a decision log, which tells no token of them."""

from array import array
from pathlib import Path

from warmfleet_router.decisions import reader
from warmfleet_router.decisions.recorder import Record, RecordingCore
from warmfleet_router.replay import report
from warmfleet_router.replay.continued import with_answers
from warmfleet_router.replay.fleet import Fleet
from warmfleet_router.replay.history import history
from warmfleet_router.replay.profile import flat
from warmfleet_router.replay.trace import Request, Trace
from warmfleet_router.routing import Routing

from tests.unit.decisions.test_decisions import Log

BLOCK = 16


def request(keys: list[int], prompt: int, completion: int, at: float = 0.0) -> Request:
    return Request(at, array("Q", keys), prompt, completion)


def test_a_prompt_that_goes_on_from_an_answer_shows_its_blocks() -> None:
    first = request([1, 2], 35, 40)  # 75 tokens: two more blocks
    cut_off = request([1, 2, 3, 4, 5, 6], 100, 1)
    requests = [
        first,
        request([1, 2, 9], 50, 10),  # a sibling: nobody held its third block
        request([1, 2, 3, 4, 5], 85, 20),  # somebody had five of it, of which the last is none of the answer
        cut_off,
        request([7], 20, 50),
    ]
    found = with_answers(requests, [0, 32, 80, 64, 0], BLOCK)
    assert [list(each.answer) for each in found] == [[3, 4], [], [], [], []]


def test_a_replay_of_a_log_finds_what_answers_left_behind(tmp_path: Path) -> None:
    """Else no cache of any size had what the workers delivered."""
    turns, keys, tokens, number = [], [1], 20, 2
    for turn in range(6):
        answer = list(range(number, number + 10))
        turns.append(request(keys, tokens, 160, 10.0 * turn)._replace(answer=answer))
        keys, number = [*keys, *answer, number + 10], number + 11
        tokens += 160 + BLOCK
    path, made = tmp_path / "log.jsonl", Log()
    core = RecordingCore(Routing(policy="cheapest"), 1, Record(made.write, "now", 1 << 30))
    engine = flat(0.001, BLOCK)
    recorded = Fleet(Routing(policy="cheapest"), engine, BLOCK, [1000], core=core)
    recorded.run(Trace("talk", BLOCK, turns))
    path.write_bytes(b"\n".join(made.files[0]) + b"\n")
    told = history(reader.read(str(path)))
    trace = told.trace("log")
    assert [list(each.answer) for each in trace.requests] == [*[list(each.answer) for each in turns[:-1]], []]
    (_, _, delivered), limits = told.rates(), report.bounds(trace, 1000)
    assert limits.infinite >= delivered > 0.7
    again = Fleet(Routing(policy="cheapest"), engine, BLOCK, [1000])
    again.run(trace)
    assert [each.cached_tokens for each in again.outcomes] == [
        each.cached_tokens for each in recorded.outcomes
    ]


def test_bounds_count_the_requests_that_are_asked_about() -> None:
    """The others are seen all the same."""
    trace = Trace("t", BLOCK, [request([1, 2], 33, 1), request([1, 2], 33, 1), request([1, 2, 3], 49, 1)])
    assert report.bounds(trace, 100).infinite == 64 / 115
    assert report.bounds(trace, 100, [False, False, True]).infinite == 32 / 49
