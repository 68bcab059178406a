"""From chat messages or text to packed token ids: render, split, remember, encode."""

import asyncio
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any
from weakref import WeakValueDictionary

import msgspec
from warmfleet_proto.errors import BadRequest
from warmfleet_proto.limits import PROMPT_BYTES, TOKEN_BYTES
from warmfleet_proto.settings import ConfigError

from warmfleet_router.memo import Memo
from warmfleet_router.prompt import ids
from warmfleet_router.prompt.masking import Masking
from warmfleet_router.prompt.offload import Offload
from warmfleet_router.prompt.template import ChatTemplate, Message
from warmfleet_router.prompt.tokenizer import Tokenizer

MEMO_BYTES = 64 << 20
PENDING_CHARS = 64 << 20
THREADS = 2
INLINE_CHARS = 2048  # encoded in under 2 ms
INLINE_RENDER_CHARS = 128 << 10


class PromptEncoder:
    """One model's prompts. Every token in a prompt belongs to one tenant: ``salt`` separates the memo.

    ``max_context`` (tokens) lets a prompt that cannot fit be refused before it is tokenised.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        memo_bytes: int = MEMO_BYTES,
        typed_specials: bool = False,
    ) -> None:
        """``typed_specials``: a special token that someone typed is one, as in vLLM and SGLang.

        Raises ConfigError.
        """
        self.tokenizer = tokenizer
        self._typed_specials = typed_specials
        self.memo = Memo(memo_bytes)
        self._masking = Masking(tokenizer.specials)
        source = tokenizer.chat_template
        self._template = ChatTemplate(source, dict(tokenizer.variables)) if source else None
        self._start = _start(tokenizer)
        self._longest = max(map(len, tokenizer.token_bytes), default=1)
        self.offload = Offload(THREADS, PENDING_CHARS)
        self._turns: WeakValueDictionary[tuple[bytes, str], asyncio.Lock] = WeakValueDictionary()

    async def chat(
        self,
        messages: list[Message],
        tools: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        salt: bytes = b"",
        max_context: int | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> bytes:
        """``variables`` are the template's own.

        Raises BadRequest naming ``messages``, Rejected when too much waits to be tokenised.
        """
        contents = sum(len(message["content"] or "") for message in messages)
        self._refuse_hopeless(contents, max_context, "messages")
        more = variables or {}
        chars = len(msgspec.json.encode((messages, tools, more)))  # no fewer than a template can see
        if chars <= INLINE_RENDER_CHARS:
            pieces = self._pieces(messages, tools, add_generation_prompt, more)
        else:
            pieces = await self.offload.run(chars, self._pieces, messages, tools, add_generation_prompt, more)
        rendered = sum(len(piece) for piece in pieces if isinstance(piece, str))
        self._refuse_hopeless(rendered, max_context, "messages")
        return await self._encode(pieces, salt, "messages")

    async def text(self, prompt: str, salt: bytes = b"", max_context: int | None = None) -> bytes:
        """The prompt behind the model's own start (a BOS token, if it has one). Raises like ``chat``."""
        self._refuse_hopeless(len(prompt), max_context, "prompt")
        pieces = self._masking.split(prompt) if self._typed_specials else [prompt]
        return await self._encode([self._start, *pieces], salt, "prompt")

    def tokens(self, packed: bytes, vocab_size: int) -> bytes:
        """A prompt that came as token ids, once they are checked. Raises BadRequest."""
        unpacked = ids.unpack(packed)
        if unpacked and (largest := max(unpacked)) >= vocab_size:
            text = f"prompt: token id {largest} is not below the vocabulary size {vocab_size}"
            raise BadRequest(text, "prompt")
        return packed

    def close(self) -> None:
        self.offload.close()

    def _pieces(
        self,
        messages: list[Message],
        tools: list[dict[str, Any]] | None,
        add_generation_prompt: bool,
        variables: Mapping[str, Any],
    ) -> list[str | bytes]:
        if self._template is None:
            raise BadRequest("messages: this model has no chat template", "messages")
        mask = _as_it_is if self._typed_specials else self._masking.mask
        # Roles and the keys of a message come from closed sets, not from a caller.
        masked = [{k: v if k == "role" else mask(v) for k, v in message.items()} for message in messages]
        rendered = self._template.render(
            masked, mask(tools), add_generation_prompt, datetime.now(), mask(dict(variables))
        )
        return self._masking.split(rendered)

    async def _encode(self, pieces: list[str | bytes], salt: bytes, field: str) -> bytes:
        known: dict[str, bytes] = {}
        missing = self._recall(salt, {piece for piece in pieces if isinstance(piece, str)}, known)
        if sum(map(len, missing)) <= INLINE_CHARS:
            self._learn(salt, missing, encode_texts(self.tokenizer, missing), known)
        else:
            # Siblings arrive together: the first one encodes what they share.
            async with self._turns.setdefault((salt, max(missing, key=len)), asyncio.Lock()):
                missing = self._recall(salt, missing, known)
                chars = sum(map(len, missing))
                packed = await self.offload.run(chars, encode_texts, self.tokenizer, missing)
                self._learn(salt, missing, packed, known)
        parts = [known[piece] if isinstance(piece, str) else piece for piece in pieces]
        return _checked(b"".join(parts), field)

    def _recall(self, salt: bytes, texts: Iterable[str], known: dict[str, bytes]) -> list[str]:
        """Moves what the memo has into ``known``; returns the rest."""
        missing = []
        for text in texts:
            packed = self.memo.get(salt, text)
            if packed is None:
                missing.append(text)
            else:
                known[text] = packed
        return missing

    def _learn(self, salt: bytes, texts: list[str], packed: list[bytes], known: dict[str, bytes]) -> None:
        for text, ids_of_text in zip(texts, packed, strict=True):
            self.memo.put(salt, text, ids_of_text)
            known[text] = ids_of_text

    def _refuse_hopeless(self, chars: int, max_context: int | None, field: str) -> None:
        if max_context is not None and chars > max_context * self._longest:
            raise BadRequest(f"{field}: more than a context of {max_context} tokens can hold", field)


def encode_texts(tokenizer: Tokenizer, texts: list[str]) -> list[bytes]:
    """Packed ids of each; special tokens in them are text. Only the batch call releases the GIL."""
    if not texts:
        return []
    encodings = tokenizer.fast.encode_batch_fast(texts, add_special_tokens=False)
    return [ids.pack(encoding.ids) for encoding in encodings]


def _as_it_is(value: Any) -> Any:
    return value


def _start(tokenizer: Tokenizer) -> bytes:
    """What the tokenizer puts before every text. Raises ConfigError if it adds anything behind."""
    plain, dressed = (tokenizer.fast.encode("a", add_special_tokens=add).ids for add in (False, True))
    start = dressed[: len(dressed) - len(plain)]
    if start + plain != dressed:
        raise ConfigError("tokenizer.json: a post-processor that appends tokens is not supported")
    return ids.pack(start)


def _checked(packed: bytes, field: str) -> bytes:
    if not packed:
        raise BadRequest(f"{field}: no tokens", field)
    if len(packed) > PROMPT_BYTES:
        raise BadRequest(f"{field}: more than {PROMPT_BYTES // TOKEN_BYTES} tokens", field)
    return packed
