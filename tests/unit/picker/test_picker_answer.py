"""What is read of an answer on its way through Envoy, and what of it goes on."""

import pytest
from warmfleet_router.picker import answer as module
from warmfleet_router.picker.answer import Answer, Held
from warmfleet_router.servers.sse import MAX_EVENT_BYTES, Usage

TEXT = b'data: {"choices":[{"index":0,"text":"a"}]}\n\n'
USAGE = (
    b'data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":2,'
    b'"prompt_tokens_details":{"cached_tokens":8}}}\n\n'
)
DONE = b"data: [DONE]\n\n"
EVENTS = TEXT + TEXT + USAGE + DONE
BODY = b'{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":2}}'


def passed(
    parts: list[bytes], hide: bool, kind: str = "text/event-stream", encoding: str = ""
) -> tuple[bytes, Usage | None]:
    held = Held()
    made = Answer(hide, held)
    made.begins(kind, encoding)
    through = b"".join(made.feed(part, n == len(parts)) for n, part in enumerate(parts, 1))
    usage = made.usage()
    assert held.size == 0
    return through, usage


@pytest.mark.parametrize("hide", [False, True])
@pytest.mark.parametrize("size", [1, 7, 50, 1000])
def test_usage_is_read_however_a_stream_is_cut(size: int, hide: bool) -> None:
    parts = [EVENTS[at : at + size] for at in range(0, len(EVENTS), size)]
    through, usage = passed(parts, hide, "text/event-stream; charset=utf-8")
    assert through == (TEXT + TEXT + DONE if hide else EVENTS)
    assert usage is not None
    assert (usage.completion_tokens, usage.cached_tokens) == (2, 8)


def test_events_go_on_when_they_are_whole() -> None:
    made = Answer(True, Held())
    made.begins("text/event-stream", "")
    assert [made.feed(part, False) for part in (TEXT, TEXT[:9], TEXT[9:], USAGE)] == [TEXT, b"", TEXT, b""]


def test_nothing_is_lost_of_a_stream_that_breaks_off_or_of_what_is_no_stream_of_events() -> None:
    assert passed([TEXT, TEXT[:9]], True) == (TEXT + TEXT[:9], None)
    flood = [TEXT, TEXT[:9], bytes(MAX_EVENT_BYTES), TEXT, USAGE]
    for hide in (False, True):
        assert passed(flood, hide) == (b"".join(flood), None)
    assert passed([EVENTS, b"more"], True)[0] == TEXT + TEXT + DONE + b"more"
    for kind, encoding in (("text/event-stream", "gzip"), ("text/html", "")):
        assert passed([EVENTS[:60], EVENTS[60:]], True, kind, encoding) == (EVENTS, None)


@pytest.mark.parametrize("hide", [False, True])
def test_what_is_held_goes_on_with_the_next_piece_once_the_reader_leaves(hide: bool) -> None:
    made = Answer(hide, Held())
    assert made.settle(), "an answer that has not begun"
    made = Answer(hide, Held())
    made.begins("text/event-stream", "")
    before = made.feed(TEXT + TEXT[:9], False)
    assert made.settle() is not hide
    assert before + made.feed(TEXT[9:15], False) + made.feed(TEXT[15:] + DONE, True) == TEXT + TEXT + DONE


def test_a_whole_answer_is_read_unless_it_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    through, usage = passed([BODY[:9], BODY[9:]], False, "application/json")
    assert through == BODY
    assert usage is not None
    assert usage.cached_tokens is None
    assert passed([b"{"], False, "application/json") == (b"{", None)
    monkeypatch.setattr(module, "MAX_BODY_BYTES", len(BODY) - 1)
    assert passed([BODY[:9], BODY[9:]], False, "application/json") == (BODY, None)


def test_answers_are_held_up_to_a_bound_on_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_HELD_BYTES", 2 * len(BODY))
    held = Held()
    answers = [Answer(False, held) for _ in range(3)]
    for answer in answers:
        answer.begins("application/json", "")
        assert answer.feed(BODY, False) == BODY
    assert held.size == 2 * len(BODY)
    assert [answer.usage() is not None for answer in answers] == [True, True, False]
    assert held.size == 0
