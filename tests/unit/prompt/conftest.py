from collections.abc import Iterator

import pytest
from warmfleet_router.prompt.encoder import PromptEncoder
from warmfleet_router.prompt.tokenizer import Tokenizer, load

from tests.model import demo_model_path
from tests.unit.prompt.reference import Bpe, bpe


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return load(demo_model_path())


@pytest.fixture(scope="session")
def reference() -> Bpe:
    return bpe(str(demo_model_path()))


@pytest.fixture
def encoder(tokenizer: Tokenizer) -> Iterator[PromptEncoder]:
    encoder = PromptEncoder(tokenizer)
    yield encoder
    encoder.close()
