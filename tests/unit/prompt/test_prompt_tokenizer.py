"""Loading: the same ids whichever way a tokenizer comes in, and a name for whatever is missing."""

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as FastTokenizer
from warmfleet_proto.settings import ConfigError
from warmfleet_router.prompt import byte_level
from warmfleet_router.prompt.encoder import encode_texts
from warmfleet_router.prompt.gguf_header import read_metadata
from warmfleet_router.prompt.ids import unpack
from warmfleet_router.prompt.tokenizer import Tokenizer, load

from tests.model import demo_model_path
from tests.unit.prompt.reference import GPT2, Bpe, text


@settings(max_examples=150, deadline=None)
@given(text)
def test_gguf_tokenizer_equals_plain_bpe(tokenizer: Tokenizer, reference: Bpe, text: str) -> None:
    assert list(unpack(encode_texts(tokenizer, [text])[0])) == reference.encode(text)


def test_demo_model_is_read_whole(tokenizer: Tokenizer) -> None:
    assert tokenizer.vocab_size == 49152
    assert tokenizer.eos_ids == (2,)
    assert tokenizer.variables["bos_token"] == "<|im_start|>"
    assert sorted(tokenizer.specials) == list(range(17))
    assert tokenizer.token_bytes[2] == b"<|im_end|>"
    assert tokenizer.chat_template is not None


def test_header_agrees_with_the_gguf_package(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    values = {
        "a.str": "h\u00e9", "a.bool": True, "a.u8": 200, "a.i32": -5, "a.u64": 2**63, "a.f32": 0.5,
        "a.names": ["x", "", "日"], "a.numbers": [1, -2, 3], "a.floats": [0.25, 1e30],
    }  # fmt: skip
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_string("a.str", values["a.str"])
    writer.add_bool("a.bool", values["a.bool"])
    writer.add_uint8("a.u8", values["a.u8"])
    writer.add_int32("a.i32", values["a.i32"])
    writer.add_uint64("a.u64", values["a.u64"])
    writer.add_float32("a.f32", values["a.f32"])
    for key in ("a.names", "a.numbers", "a.floats"):
        writer.add_array(key, values[key])
    writer.add_tensor("t", np.zeros(8, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    read = read_metadata(path)
    theirs = {key: f.contents() for key, f in gguf.GGUFReader(path).fields.items() if "GGUF." not in key}
    assert read == theirs
    assert read["a.names"] == values["a.names"]


def start_of_model(size: int) -> bytes:
    with demo_model_path().open("rb") as file:
        return file.read(size)


@pytest.mark.parametrize("size", [0, 3, 24, 25, 40, 1000, 500_000])
def test_cut_gguf_is_named(tmp_path: Path, size: int) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(start_of_model(size))
    with pytest.raises(ConfigError, match=r"cut\.gguf: not a GGUF file"):
        load(path)


def test_gguf_with_absurd_length_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "absurd.gguf"
    head = start_of_model(24)
    path.write_bytes(head + (2**63).to_bytes(8, "little") + b"x" * 100)
    with pytest.raises(ConfigError, match="not a GGUF file"):
        load(path)


# ---- Other pre-tokenizers

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
PATTERNS = {"llama-bpe": LLAMA3, "qwen2": LLAMA3.replace("{1,3}", ""), "default": GPT2.pattern}


def bytes_only(pre: str, **more: object) -> dict[str, object]:
    tokens = [*byte_level.BYTE_OF, "<s>", "<tool>"]
    model = {
        "tokens": tokens,
        "token_type": [1] * 256 + [3, 4],
        "merges": [],
        "pre": pre,
        "bos_token_id": 256,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in {**model, **more}.items()}


@pytest.mark.parametrize("pre", PATTERNS)
@settings(max_examples=50, deadline=None)
@given(text=text)
def test_words_are_cut_as_the_model_was_trained(pre: str, text: str) -> None:
    fast = byte_level.from_gguf(bytes_only(pre))
    assert fast.pre_tokenizer is not None
    words = [word for word, _ in fast.pre_tokenizer.pre_tokenize_str(text)]
    cut = regex.findall(PATTERNS[pre], text)
    assert [bytes(byte_level.BYTE_OF[char] for char in word).decode() for word in words] == cut


def test_bos_comes_where_the_file_says() -> None:
    assert byte_level.from_gguf(bytes_only("llama-bpe")).encode("!").ids == [256, 0]
    assert byte_level.from_gguf(bytes_only("qwen2")).encode("!").ids == [0]
    assert byte_level.from_gguf(bytes_only("qwen2", add_bos_token=True)).encode("!").ids == [256, 0]


def test_only_control_tokens_are_special() -> None:
    added = byte_level.from_gguf(bytes_only("qwen2")).get_added_tokens_decoder()
    assert {token.content: token.special for token in added.values()} == {"<s>": True, "<tool>": False}


def test_unknown_pre_tokenizer_is_named() -> None:
    with pytest.raises(ConfigError, match=r"tokenizer\.ggml\.pre: tekken"):
        byte_level.from_gguf(bytes_only("tekken"))


# ---- Hugging Face folders


def folder(tmp_path: Path, tokenizer: Tokenizer, **files: object) -> Path:
    fast = FastTokenizer.from_str(tokenizer.fast.to_str())
    fast.enable_truncation(5)
    fast.save(str(tmp_path / "tokenizer.json"))
    for name, content in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return tmp_path


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Tokenizer:
    return load(folder(tmp_path_factory.mktemp("hf"), tokenizer))


@settings(max_examples=25, deadline=None)
@given(texts=st.lists(text, max_size=20))
def test_folder_gives_the_same_ids(loaded: Tokenizer, tokenizer: Tokenizer, texts: list[str]) -> None:
    assert encode_texts(loaded, texts) == encode_texts(tokenizer, texts)


def test_folder_gives_the_same_vocabulary(loaded: Tokenizer, tokenizer: Tokenizer) -> None:
    assert loaded.token_bytes == tokenizer.token_bytes
    assert loaded.specials.keys() == tokenizer.specials.keys()


def test_folder_collects_every_eos(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = folder(
        tmp_path,
        tokenizer,
        tokenizer_config={"eos_token": {"content": "<|im_end|>"}, "bos_token": "<|im_start|>"},
        generation_config={"eos_token_id": [0, 5]},
        config={"eos_token_id": 9},  # generation_config says better
    )
    loaded = load(path)
    assert loaded.eos_ids == (0, 2, 5)
    assert loaded.variables == {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}


def test_template_file_wins_over_config(tmp_path: Path, tokenizer: Tokenizer) -> None:
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    path = folder(tmp_path, tokenizer, tokenizer_config={"chat_template": named})
    assert load(path).chat_template == "D"
    (path / "chat_template.jinja").write_text("F")
    assert load(path).chat_template == "F"


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [("tokenizer.json", "{}", "tokenizer.json"), ("tokenizer_config.json", "[1]", "tokenizer_config.json")],
)
def test_broken_folder_is_named(
    tmp_path: Path, tokenizer: Tokenizer, name: str, content: str, named: str
) -> None:
    folder(tmp_path, tokenizer)
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=named):
        load(tmp_path)


def test_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tokenizer\.json"):
        load(tmp_path)
    with pytest.raises(ConfigError, match="neither"):
        load(tmp_path / "model.bin")
