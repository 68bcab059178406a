from hypothesis import given, settings
from hypothesis import strategies as st
from warmfleet_router.prompt.detokenizer import Detokenizer
from warmfleet_router.prompt.encoder import encode_texts
from warmfleet_router.prompt.ids import unpack
from warmfleet_router.prompt.tokenizer import Tokenizer

from tests.unit.prompt.reference import text

cuts = st.integers(1, 4)


def stream(tokenizer: Tokenizer, ids: list[int], cut: int) -> list[str]:
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.push(ids[at : at + cut]) for at in range(0, len(ids), cut)]
    return [*pieces, detokenizer.flush()]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 49151) | st.integers(0, 300), max_size=30), cuts)
def test_any_ids_give_what_decoding_them_whole_gives(tokenizer: Tokenizer, ids: list[int], cut: int) -> None:
    assert "".join(stream(tokenizer, ids, cut)) == tokenizer.fast.decode(ids, skip_special_tokens=True)


@settings(max_examples=100, deadline=None)
@given(text, cuts)
def test_text_comes_back_and_no_character_is_torn(tokenizer: Tokenizer, text: str, cut: int) -> None:
    text = "".join(c for c in text if c.encode()[0] not in b"\x04\x06\x13\x14\x16\x1d\xf1\xf2\xf3\xf4")
    pieces = stream(tokenizer, list(unpack(encode_texts(tokenizer, [text])[0])), cut)
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_character_cut_short_is_flushed(tokenizer: Tokenizer) -> None:
    ids = unpack(encode_texts(tokenizer, ["👩"])[0])
    assert len(ids) > 1
    detokenizer = Detokenizer(tokenizer)
    assert detokenizer.push(ids[:-1]) == ""
    assert detokenizer.flush() == "\ufffd"


def test_ids_outside_the_vocabulary_have_no_text(tokenizer: Tokenizer) -> None:
    assert Detokenizer(tokenizer).push([49152, 2**32 - 1, 33]) == "1"
