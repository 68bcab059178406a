"""Token counts that the workloads promise, by the demo model's own tokenizer."""

import pytest
from warmfleet_router.prompt.encoder import PromptEncoder
from warmfleet_router.prompt.tokenizer import Tokenizer, load

from loadtest.words import WORDS
from loadtest.workloads import ChatShape, chat, tokens
from tests.model import demo_model_path


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load(demo_model_path())


def test_every_word_is_one_token_with_and_without_a_space(tokenizer: Tokenizer) -> None:
    texts = [text for word in WORDS for text in (word, f" {word}")]
    assert [
        t for t, e in zip(texts, tokenizer.fast.encode_batch(texts), strict=True) if len(e.ids) != 1
    ] == []


async def test_a_turn_has_about_the_tokens_that_are_offered(tokenizer: Tokenizer) -> None:
    encoder = PromptEncoder(tokenizer)
    try:
        for turn in chat(5, 10, seed=1, shape=ChatShape(system=200)):
            packed = await encoder.chat([m.as_dict() for m in turn.messages])
            assert len(packed) / 4 == pytest.approx(tokens(turn.messages), rel=0.02)
    finally:
        encoder.close()
