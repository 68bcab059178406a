"""The byte-level BPE of GPT-2: how bytes are spelt as characters, and a tokenizer from a GGUF vocabulary."""

from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from warmfleet_proto.settings import ConfigError

_CONTROL, _USER_DEFINED = 3, 4  # tokenizer.ggml.token_type

# Patterns from the models' own tokenizer.json.
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


def _alphabet() -> dict[str, int]:
    """Character -> byte: printable Latin-1 stands for itself, the others for U+0100 and on, in order."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(b): b for b in plain} | {chr(0x100 + i): b for i, b in enumerate(others)}


BYTE_OF = _alphabet()


def from_gguf(metadata: dict[str, Any]) -> Tokenizer:
    """The tokenizer of a GGUF file whose tokenizer.ggml.model is gpt2. Raises ConfigError."""
    tokens, kinds = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    pre = metadata.get("tokenizer.ggml.pre", "default")
    merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    fast = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=pre == "llama-bpe"))
    fast.pre_tokenizer = _pre_tokenizer(pre)
    if pre == "qwen2":
        fast.normalizer = normalizers.NFC()
    fast.decoder = decoders.ByteLevel()
    added = [
        AddedToken(token, special=kind == _CONTROL, normalized=False)
        for token, kind in zip(tokens, kinds, strict=True)
        if kind in (_CONTROL, _USER_DEFINED)
    ]
    fast.add_tokens(added)
    if metadata.get("tokenizer.ggml.add_bos_token", pre == "llama-bpe"):
        bos = metadata["tokenizer.ggml.bos_token_id"]
        name = tokens[bos]
        fast.post_processor = processors.TemplateProcessing(single=f"{name} $A", special_tokens=[(name, bos)])
    return fast


def _pre_tokenizer(name: str) -> pre_tokenizers.PreTokenizer:
    if name == "smollm":
        split = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    if name in ("default", "gpt-2"):
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    pattern = {"llama-bpe": _LLAMA3, "qwen2": _QWEN2}.get(name)
    if pattern is None:
        raise ConfigError(f"tokenizer.ggml.pre: {name} is not supported; use a Hugging Face folder")
    words = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    return pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
