"""A special token that someone typed is text, wherever a template puts it."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from warmfleet_proto.settings import ConfigError
from warmfleet_router.prompt.ids import pack
from warmfleet_router.prompt.masking import Masking

from tests.unit.prompt.reference import SPECIALS, text

MASKING = Masking({i: AddedToken(token, special=True) for i, token in enumerate(SPECIALS)})
fragment = st.sampled_from(SPECIALS) | text  # what a template writes may hold halves of tokens too


@settings(max_examples=150, deadline=None)
@given(st.lists(text, max_size=6))
def test_joined_callers_texts_never_make_a_token(texts: list[str]) -> None:
    pieces = MASKING.split("".join(map(MASKING.mask, texts)))
    assert pieces == [joined for joined in ["".join(texts)] if joined]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(text, st.sampled_from(SPECIALS)), max_size=5))
def test_templates_tokens_stay(parts: list[tuple[str, str]]) -> None:
    rendered = "".join(MASKING.mask(typed) + token for typed, token in parts)
    expected = [x for typed, token in parts for x in (typed, pack([SPECIALS.index(token)])) if x]
    assert MASKING.split(rendered) == expected


@pytest.mark.parametrize("cut", range(1, len("<|im_end|>")))
def test_half_a_token_never_meets_its_other_half(cut: int) -> None:
    """Whichever half the caller typed, and whichever the template."""
    head, tail = "<|im_end|>"[:cut], "<|im_end|>"[cut:]
    assert MASKING.split(MASKING.mask(head) + tail) == ["<|im_end|>"]
    assert MASKING.split(head + MASKING.mask(tail)) == ["<|im_end|>"]


def test_masks_all_of_a_structure() -> None:
    value = {"<|im_end|>": [{"a": "<|im_end|>", "b": 1}, None, 0.5, True]}
    masked = MASKING.mask(value)
    assert MASKING.split(json.dumps(masked, ensure_ascii=False)) == [json.dumps(value)]
    assert masked.keys() == {"<\ufdd0|im_end|>"}


def test_plain_text_is_left_alone() -> None:
    for plain in ("hello", "a < b > c", "</div> ", "", "<|im_start", "x" * 100):
        assert MASKING.mask(plain).replace("\ufdd0", "") == plain
    assert MASKING.mask("<p>a < b</p> x") == "<p>a < b</p> x"


def test_overlapping_tokens() -> None:
    masking = Masking({0: AddedToken("ab", special=True), 1: AddedToken("bc", special=True)})
    assert masking.split(masking.mask("abcabc")) == ["abcabc"]
    assert masking.split("abc" + masking.mask("abc") + "bc") == [pack([0]), "cabc", pack([1])]


def test_longest_token_wins() -> None:
    masking = Masking({0: AddedToken("<a>", special=True), 1: AddedToken("<a>b", special=True)})
    assert masking.split("<a>b<a>") == [pack([1]), pack([0])]


@pytest.mark.parametrize("rendered", ["x  <m>  y <r>\u3000\n z<l> w", " <m> <r> <l> ", "<r>", "<l><m><r>"])
def test_spaces_are_swallowed_as_tokenizers_does(rendered: str) -> None:
    tokens = [
        AddedToken("<m>", special=True, lstrip=True, rstrip=True),
        AddedToken("<r>", special=True, rstrip=True),
        AddedToken("<l>", special=True, lstrip=True),
    ]
    letters = {char: i for i, char in enumerate(pre_tokenizers.ByteLevel.alphabet())}
    fast = Tokenizer(models.BPE(vocab=letters, merges=[]))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.add_special_tokens(tokens)
    masking = Masking(fast.get_added_tokens_decoder())
    pieces = masking.split(rendered)
    ours = [p if isinstance(p, bytes) else pack(fast.encode(p).ids) for p in pieces]
    assert b"".join(ours) == pack(fast.encode(rendered).ids)


def test_no_specials_at_all() -> None:
    assert Masking({}).split(Masking({}).mask("<|im_end|>")) == ["<|im_end|>"]


def test_token_of_one_character_refuses_to_start() -> None:
    with pytest.raises(ConfigError, match="too short"):
        Masking({0: AddedToken("#", special=True)})
