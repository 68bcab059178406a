"""Plain definitions that the fast code is held against, and the texts to try them on."""

from itertools import pairwise
from typing import Any

import regex
from hypothesis import strategies as st
from warmfleet_router.prompt.gguf_header import read_metadata

GPT2 = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<file_sep>"]

# What is likely to go wrong: whole, halved and nested special tokens, marks, borders of merges.
hostile = st.sampled_from(
    [
        *SPECIALS, "<|im_", "end|>", "<|im_end|", "|>", "<", ">", "<<|im_end|>>", "<|im_<|im_end|>end|>",
        "\ufdd0", "\ufdd1", "\ufdd10", "\ufdd11", "\ufdd0\ufdd1", "\n", "\n- x", " ", "  ", "12", "'s", "é",
        "e\u0301", "日本", "👩‍👩‍👧", "\x00", "\x06", "{{", "{% raw %}", "assistant\n",
    ]
)  # fmt: skip
# Libraries differ in what they know of characters that Unicode has not assigned.
_assigned = st.text(alphabet=st.characters(exclude_categories=("Cs", "Cn")), max_size=8)
text = st.lists(hostile | _assigned, max_size=8).map("".join)


class Bpe:
    """Byte-level BPE of SmolLM2, as GPT-2's paper code does it: no special tokens at all."""

    def __init__(self, metadata: dict[str, Any]) -> None:
        self.ids = {token: i for i, token in enumerate(metadata["tokenizer.ggml.tokens"])}
        self.ranks = {merge: i for i, merge in enumerate(metadata["tokenizer.ggml.merges"])}
        visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
        hidden = [b for b in range(256) if b not in visible]
        self.spelt = {b: chr(b) for b in visible} | {b: chr(256 + i) for i, b in enumerate(hidden)}

    def encode(self, text: str) -> list[int]:
        words = [w for part in regex.split(r"(\p{N})", text) if part for w in GPT2.findall(part)]
        return [i for word in words for i in self._word(word)]

    def _word(self, word: str) -> list[int]:
        parts = [self.spelt[byte] for byte in word.encode()]
        parts = [part for part in parts if part in self.ids]  # six control characters have no token
        while pairs := [(self.ranks.get(f"{a} {b}", 1 << 30), i) for i, (a, b) in enumerate(pairwise(parts))]:
            rank, at = min(pairs)
            if rank == 1 << 30:
                break
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        return [self.ids[part] for part in parts]


def bpe(path: str) -> Bpe:
    return Bpe(read_metadata(path))
