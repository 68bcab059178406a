"""A vocabulary as Llama 2 has it: words behind U+2581, bytes that have no word as <0x..>."""

import asyncio
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as FastTokenizer
from warmfleet_proto.settings import ConfigError
from warmfleet_router.prompt.detokenizer import Detokenizer
from warmfleet_router.prompt.encoder import PromptEncoder
from warmfleet_router.prompt.ids import unpack
from warmfleet_router.prompt.tokenizer import Tokenizer, load

from tests.unit.prompt.reference import text

TEMPLATE = "{% for m in messages %}<s>[INST] {{ m.content }} [/INST]{% endfor %}"


def build() -> FastTokenizer:
    words = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        "a",
        "b",
        "▁a",
        "ab",
        "[",
        "▁[",
    ]
    merges = [("▁", "a"), ("a", "b"), ("▁", "[")]
    vocab = {word: i for i, word in enumerate(words)}
    fast = FastTokenizer(
        models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    fast.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    fast.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    fast.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in ("<unk>", "<s>", "</s>")])
    return fast


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path: Path = tmp_path_factory.mktemp("llama")
    build().save(str(path / "tokenizer.json"))
    (path / "chat_template.jinja").write_text(TEMPLATE)
    return load(path)


def test_segments_are_encoded_as_tokenizers_does(llama: Tokenizer) -> None:
    encoder = PromptEncoder(llama)
    messages = [{"role": "user", "content": content} for content in ("ab é", "", " a  b\n")]
    rendered = "".join(f"<s>[INST] {m['content']} [/INST]" for m in messages)
    ids = asyncio.run(encoder.chat(messages))
    assert list(unpack(ids)) == build().encode(rendered, add_special_tokens=False).ids
    encoder.close()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 265), max_size=20))
def test_decoding_keeps_the_space_that_the_library_strips(llama: Tokenizer, ids: list[int]) -> None:
    detokenizer = Detokenizer(llama)
    out = "".join(detokenizer.push([i]) for i in ids) + detokenizer.flush()
    theirs = build().decode(ids, skip_special_tokens=True)
    if "\ufffd" not in theirs:  # the library gives up on a whole run of bytes, we on what is no UTF-8
        assert out.removeprefix(" ") == theirs


@settings(max_examples=100, deadline=None)
@given(text)
def test_text_comes_back(llama: Tokenizer, text: str) -> None:
    ids = llama.fast.encode(text, add_special_tokens=False).ids
    assert Detokenizer(llama).push(ids) == (" " + text.replace("▁", " ") if text else "")


def test_metaspace_that_looks_at_the_start_is_refused(tmp_path: Path) -> None:
    fast = build()
    fast.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    fast.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ConfigError, match="prepend_scheme first"):
        load(tmp_path)
