from hypothesis import given, settings
from hypothesis import strategies as st
from warmfleet_router.prompt.stops import StopScanner

letters = st.text(alphabet="ab", max_size=12)
stops = st.lists(st.text(alphabet="ab", min_size=1, max_size=5), max_size=4)


def naive(text: str, stops: list[str]) -> tuple[str, bool]:
    """The text up to the first place where a stop is complete, less the longest one that ends there."""
    for end in range(len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return text[: end - max(map(len, ending))], True
    return text, False


def scan(pieces: list[str], stops: list[str]) -> tuple[str, bool]:
    scanner, sent = StopScanner(stops), ""
    for piece in pieces:
        emitted, stopped = scanner.push(piece)
        sent += emitted
        if stopped:
            return sent, True
    return sent + scanner.flush(), False


@settings(max_examples=500, deadline=None)
@given(st.lists(letters, max_size=6), stops)
def test_any_cutting_gives_what_the_whole_text_gives(pieces: list[str], stops: list[str]) -> None:
    assert scan(pieces, stops) == naive("".join(pieces), stops)


@settings(max_examples=200, deadline=None)
@given(st.lists(letters, max_size=6), stops)
def test_holds_the_longest_possible_beginning_and_no_more(pieces: list[str], stops: list[str]) -> None:
    scanner, text, sent = StopScanner(stops), "", ""
    for piece in pieces:
        text += piece
        emitted, stopped = scanner.push(piece)
        if stopped:
            return
        sent += emitted
        beginnings = [n for stop in stops for n in range(len(stop)) if text.endswith(stop[:n])]
        assert len(text) - len(sent) == max(beginnings, default=0)


def test_stop_is_cut_across_pieces() -> None:
    scanner = StopScanner(["</answer>"])
    assert scanner.push("42</") == ("42", False)
    assert scanner.push("answ") == ("", False)
    assert scanner.push("er> more") == ("", True)


def test_held_text_comes_out_when_it_was_no_stop() -> None:
    scanner = StopScanner(["</answer>"])
    assert scanner.push("1 </a") == ("1 ", False)
    assert scanner.push("b") == ("</ab", False)
    assert scanner.push("<") == ("", False)
    assert scanner.flush() == "<"
