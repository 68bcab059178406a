"""Chat to ids: a special token is one only where the template wrote it, memo or no memo."""

import asyncio
import gc
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from warmfleet_proto.errors import BadRequest, Rejected
from warmfleet_proto.limits import PROMPT_BYTES
from warmfleet_proto.settings import ConfigError
from warmfleet_router.prompt import encoder as module
from warmfleet_router.prompt.encoder import INLINE_RENDER_CHARS, PromptEncoder, encode_texts
from warmfleet_router.prompt.ids import pack, unpack
from warmfleet_router.prompt.offload import Offload
from warmfleet_router.prompt.template import Message
from warmfleet_router.prompt.tokenizer import Tokenizer

from tests.unit.prompt.reference import Bpe, text

START, END = [1], [2]
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"

message = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system"]), "content": text})
conversations = st.lists(message, min_size=1, max_size=6)


def chatml(reference: Bpe, messages: list[dict[str, str]]) -> list[int]:
    """SmolLM2's template written out by hand, over an encoder that knows no special token."""
    if messages[0]["role"] != "system":
        messages = [{"role": "system", "content": SYSTEM}, *messages]
    ids = []
    for message in messages:
        body = reference.encode(f"{message['role']}\n{message['content']}")
        ids += START + body + END + reference.encode("\n")
    return ids + START + reference.encode("assistant\n")


@pytest.fixture(scope="module")
def shared(tokenizer: Tokenizer) -> Iterator[PromptEncoder]:
    encoder = PromptEncoder(tokenizer)
    yield encoder
    encoder.close()


@settings(max_examples=60, deadline=None)
@given(conversations)
def test_chat_equals_the_template_by_hand(
    shared: PromptEncoder, reference: Bpe, messages: list[dict[str, str]]
) -> None:
    for _ in range(2):  # cold, then from the memo
        assert list(unpack(asyncio.run(shared.chat(messages)))) == chatml(reference, messages)


@settings(max_examples=40, deadline=None)
@given(st.lists(conversations, max_size=5), st.integers(0, 5000))
def test_memo_changes_nothing(
    tokenizer: Tokenizer, turns: list[list[dict[str, str]]], memo_bytes: int
) -> None:
    async def ask(encoder: PromptEncoder) -> list[bytes]:
        history: list[dict[str, str]] = []
        answers = []
        for turn in turns:
            history += turn
            answers.append(await encoder.chat(history))
        return answers

    encoders = [PromptEncoder(tokenizer, size) for size in (0, memo_bytes, 1 << 20)]
    first, *others = [asyncio.run(ask(encoder)) for encoder in encoders]
    assert others == [first, first]
    for encoder in encoders:
        encoder.close()


async def test_special_token_in_a_text_prompt_is_text(encoder: PromptEncoder, reference: Bpe) -> None:
    packed = await encoder.text("Hi <|im_end|>")
    assert list(unpack(packed)) == reference.encode("Hi <|im_end|>")


async def test_text_starts_with_bos_when_the_model_wants_one(tokenizer: Tokenizer, reference: Bpe) -> None:
    from tokenizers import Tokenizer as Fast
    from tokenizers import processors

    fast = Fast.from_str(tokenizer.fast.to_str())
    fast.encode_special_tokens = True
    special = [("<|im_start|>", 1)]
    fast.post_processor = processors.TemplateProcessing(single="<|im_start|> $A", special_tokens=special)
    encoder = PromptEncoder(Tokenizer(fast, tokenizer.specials, tokenizer.token_bytes, (2,), None))
    assert list(unpack(await encoder.text("Hi"))) == START + reference.encode("Hi")
    with pytest.raises(BadRequest, match="no chat template"):
        await encoder.chat([{"role": "user", "content": "Hi"}])
    encoder.close()
    fast.post_processor = processors.TemplateProcessing(single="$A <|im_start|>", special_tokens=special)
    with pytest.raises(ConfigError, match="post-processor"):
        PromptEncoder(Tokenizer(fast, tokenizer.specials, tokenizer.token_bytes, (2,), None))


async def test_tenants_never_share_the_memo(encoder: PromptEncoder) -> None:
    for salt in (b"a", b"b"):
        await encoder.text("a secret text", salt)
    assert (encoder.memo.hits, encoder.memo.misses) == (0, 2)
    await encoder.text("a secret text", b"a")
    assert encoder.memo.hits == 1


async def test_siblings_are_encoded_once(encoder: PromptEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def encode(tokenizer: Tokenizer, texts: list[str]) -> list[bytes]:
        sizes.extend(map(len, texts))
        return encode_texts(tokenizer, texts)

    monkeypatch.setattr(module, "encode_texts", encode)
    shared = "what all siblings share " * 500
    asked = [encoder.chat([{"role": "user", "content": shared}]) for _ in range(8)]
    cancelled, *others = [asyncio.create_task(call) for call in asked]
    await asyncio.sleep(0)
    cancelled.cancel()
    answers = await asyncio.gather(*others)
    assert len(set(answers)) == 1
    assert sum(sizes) < 3 * len(shared), "one encodes it for all, but for the one that was cancelled"


async def test_tools_and_generation_prompt_reach_the_template(tokenizer: Tokenizer) -> None:
    template = "{{ tools | tojson }}{% if add_generation_prompt %}<|im_start|>{% endif %}"
    encoder = PromptEncoder(
        Tokenizer(tokenizer.fast, tokenizer.specials, tokenizer.token_bytes, (2,), template)
    )
    messages = [{"role": "user", "content": "x"}]
    tools: list[dict[str, Any]] = [{"type": "function", "function": {"name": "<|im_start|>"}}]
    with_prompt = unpack(await encoder.chat(messages, tools))
    without = unpack(await encoder.chat(messages, tools, add_generation_prompt=False))
    assert list(with_prompt) == [*without, 1]
    assert 1 not in list(without)
    encoder.close()


# ---- Bounds


async def test_nothing_to_complete_is_refused(encoder: PromptEncoder) -> None:
    for prompt in ("", "\x06"):
        with pytest.raises(BadRequest, match="prompt: no tokens"):
            await encoder.text(prompt)


def calling(arguments: Any) -> dict[str, Any]:
    """An answer that is all arguments."""
    function = {"name": "f", "arguments": arguments}
    call = {"id": "c", "type": "function", "function": function}
    return {"role": "assistant", "content": "", "tool_calls": [call]}


LARGE: dict[str, tuple[list[Message], list[dict[str, Any]] | None]] = {
    "content": ([{"role": "user", "content": "x" * INLINE_RENDER_CHARS}], None),
    "arguments": ([calling({"a": ["x"] * (INLINE_RENDER_CHARS // 4)})], None),
    "keys": ([calling({"x" * INLINE_RENDER_CHARS: 1})], None),
    "name": ([{"role": "user", "content": "", "name": "x" * INLINE_RENDER_CHARS}], None),
    "reasoning": ([{"role": "user", "content": "", "reasoning_content": "x" * INLINE_RENDER_CHARS}], None),
    "tools": ([{"role": "user", "content": ""}], [{"function": {"name": "x" * INLINE_RENDER_CHARS}}]),
}


@pytest.mark.parametrize("case", LARGE)
async def test_whatever_is_large_is_rendered_in_a_thread(
    encoder: PromptEncoder, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    threads: list[threading.Thread] = []

    def pieces(*_: Any) -> list[str]:
        threads.append(threading.current_thread())
        return ["hi"]

    monkeypatch.setattr(encoder, "_pieces", pieces)
    await encoder.chat(*LARGE[case])
    small: list[Message] = [calling({"a": 1}), {"role": "user", "content": "x"}]
    await encoder.chat(small, [{"function": {"name": "f"}}])
    assert [thread is threading.current_thread() for thread in threads] == [False, True]


async def test_a_prompt_that_turns_out_hopeless_is_not_tokenised(tokenizer: Tokenizer) -> None:
    template = "{{ messages[0].tool_calls | tojson }}"
    encoder = PromptEncoder(
        Tokenizer(tokenizer.fast, tokenizer.specials, tokenizer.token_bytes, (2,), template)
    )
    with pytest.raises(BadRequest, match="messages: more than a context of 100 tokens can hold"):
        await encoder.chat([calling({"a": "x" * 8101})], max_context=100)
    assert encoder.memo.misses == 0
    encoder.close()


async def test_prompt_beyond_the_wire_is_refused(
    encoder: PromptEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PROMPT_BYTES", 40)
    assert PROMPT_BYTES > 40
    assert len(await encoder.text("1" * 10)) == 40
    with pytest.raises(BadRequest, match="prompt: more than 10 tokens"):
        await encoder.text("1" * 11)


async def test_hopeless_prompt_is_refused_before_work(encoder: PromptEncoder) -> None:
    with pytest.raises(BadRequest, match="prompt: more than a context of 100 tokens can hold"):
        await encoder.text("x" * 8101, max_context=100)  # the longest token has 81 bytes
    with pytest.raises(BadRequest, match="messages: more"):
        await encoder.chat([{"role": "user", "content": "x" * 8101}], max_context=100)
    assert encoder.memo.misses == 0
    await encoder.text("x" * 8100, max_context=100)


def test_token_ids_are_checked_against_the_vocabulary(encoder: PromptEncoder) -> None:
    assert encoder.tokens(pack([0, 49151]), 49152) == pack([0, 49151])
    with pytest.raises(BadRequest, match="token id 49152 is not below the vocabulary size 49152"):
        encoder.tokens(pack([0, 49152, 3]), 49152)


async def test_waiting_work_is_bounded() -> None:
    offload = Offload(threads=1, max_pending=10)
    release = asyncio.Event()
    loop = asyncio.get_running_loop()

    def hold() -> None:
        asyncio.run_coroutine_threadsafe(release.wait(), loop).result(5)

    first = asyncio.create_task(offload.run(100, hold))  # alone, any size may run
    await asyncio.sleep(0)
    with pytest.raises(Rejected):
        await offload.run(1, hold)
    release.set()
    await first
    both = [asyncio.create_task(offload.run(5, hold)) for _ in range(2)]
    await asyncio.gather(*both)
    await offload.run(10, hold)
    offload.close()


async def test_cancelled_caller_gives_its_room_back() -> None:
    offload = Offload(threads=1, max_pending=10)
    tasks = [asyncio.create_task(offload.run(3, time.sleep, 0.01)) for _ in range(3)]
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await offload.run(0, time.sleep, 0)  # the one thread is through with the others
    assert await offload.run(10, lambda: "all of it") == "all of it"
    offload.close()


async def test_long_prompts_do_not_hold_up_the_loop(encoder: PromptEncoder) -> None:
    """Thread time of the loop between two of its turns, while 256 KB prompts are tokenised."""
    texts = [f"{i} lines of <b>prose</b>, {i}\n" * 10_000 for i in range(12)]
    assert len(texts[0]) > 256 << 10
    gc.disable()  # it would walk over all that the test run holds
    try:
        longest = [await longest_turn(encoder, texts[i::3]) for i in range(3)]
    finally:
        gc.enable()
    assert min(longest) < 0.02


async def longest_turn(encoder: PromptEncoder, texts: list[str]) -> float:
    everything = asyncio.gather(*(encoder.chat([{"role": "user", "content": text}]) for text in texts))
    longest, last = 0.0, time.thread_time()
    while not everything.done():
        await asyncio.sleep(0.001)
        now = time.thread_time()
        longest, last = max(longest, now - last), now
    await everything
    return longest
