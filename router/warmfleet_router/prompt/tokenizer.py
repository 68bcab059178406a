"""The tokenizer of a model, from a Hugging Face folder or a GGUF file; nothing is fetched."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as FastTokenizer
from tokenizers.models import BPE
from warmfleet_proto.settings import ConfigError

from warmfleet_router.prompt import byte_level
from warmfleet_router.prompt.gguf_header import read_metadata
from warmfleet_router.prompt.vocabulary import check_segments, token_bytes

_ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """``fast`` treats special tokens in a text as text: only a chat template can write one."""

    fast: FastTokenizer
    specials: Mapping[int, AddedToken]
    token_bytes: list[bytes]  # by token id
    eos_ids: tuple[int, ...]  # each ends a completion
    chat_template: str | None
    variables: Mapping[str, str] = field(default_factory=dict)  # bos_token and its like, for the template
    model_vocab_size: int = 0  # rows of its model's embedding, some of no token; 0: not told

    @property
    def vocab_size(self) -> int:
        return len(self.token_bytes)


def load(path: str | Path) -> Tokenizer:
    """The tokenizer of a folder with tokenizer.json, or of a .gguf file. Raises ConfigError naming what is
    missing."""
    path = Path(path)
    if path.is_dir():
        return _from_folder(path)
    if path.suffix == ".gguf":
        return _from_gguf(path)
    raise ConfigError(f"{path}: neither a model folder nor a .gguf file")


def of_no_model() -> Tokenizer:
    """No text has a token: for a gateway without workers of our own."""
    return Tokenizer(FastTokenizer(BPE()), {}, [], (), None)


def _tokenizer(
    fast: FastTokenizer, eos_ids: set[int], template: str | None, variables: dict[str, str], rows: Any
) -> Tokenizer:
    check_segments(fast)
    fast.no_truncation()
    fast.no_padding()
    fast.encode_special_tokens = True
    specials = {i: token for i, token in fast.get_added_tokens_decoder().items() if token.special}
    rows = rows if isinstance(rows, int) else 0
    return Tokenizer(fast, specials, token_bytes(fast), tuple(sorted(eos_ids)), template, variables, rows)


# ---- GGUF


def _from_gguf(path: Path) -> Tokenizer:
    metadata = read_metadata(path)
    try:
        return _from_metadata(metadata)
    except (KeyError, IndexError, ValueError) as error:
        raise ConfigError(f"{path}: the vocabulary is broken: {error!r}") from None


def _from_metadata(metadata: dict[str, Any]) -> Tokenizer:
    kind = metadata.get("tokenizer.ggml.model")
    if kind != "gpt2":
        raise ConfigError(f"tokenizer.ggml.model: {kind} is not supported, only gpt2 (byte-level BPE)")
    tokens = metadata["tokenizer.ggml.tokens"]
    names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    keys = {role: f"tokenizer.ggml.{name}_token_id" for role, name in names.items()}
    variables = {role: tokens[metadata[key]] for role, key in keys.items() if key in metadata}
    ends = [metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    eos_ids = {token_id for token_id in ends if token_id is not None}
    template = metadata.get("tokenizer.chat_template")
    return _tokenizer(byte_level.from_gguf(metadata), eos_ids, template, variables, len(tokens))


# ---- Hugging Face folder


def _from_folder(path: Path) -> Tokenizer:
    try:
        fast = FastTokenizer.from_file(str(path / "tokenizer.json"))
    except Exception as error:  # the library raises plain Exception
        raise ConfigError(f"{path / 'tokenizer.json'}: {error}") from None
    config = _json(path / "tokenizer_config.json")
    variables = {role: _content(config[role]) for role in _ROLES if config.get(role)}
    eos_ids = _declared_eos(path)
    named = fast.token_to_id(variables.get("eos_token", ""))
    if named is not None:
        eos_ids.add(named)
    rows = _json(path / "config.json").get("vocab_size")
    return _tokenizer(fast, eos_ids, _template(path, config), variables, rows)


def _declared_eos(path: Path) -> set[int]:
    for name in ("generation_config.json", "config.json"):
        declared = _json(path / name).get("eos_token_id")
        if declared is not None:
            return set(declared) if isinstance(declared, list) else {declared}
    return set()


def _template(path: Path, config: dict[str, Any]) -> str | None:
    file = path / "chat_template.jinja"
    if file.exists():
        return file.read_text()
    template = config.get("chat_template")
    if isinstance(template, list):  # several named ones
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    return template


def _content(token: str | dict[str, Any]) -> str:
    return token if isinstance(token, str) else str(token["content"])


def _json(path: Path) -> dict[str, Any]:
    """An absent file is empty. Raises ConfigError."""
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: not an object")
    return content
