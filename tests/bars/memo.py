"""Bar: a conversation's next turn from the memo, and a loop that long prompts do not block.

Loop time is thread time between two turns of the event loop: what the loop itself was busy with, whatever
else runs on the machine.
"""

import asyncio
import random
import statistics
import time

from warmfleet_router.local import demo
from warmfleet_router.prompt import tokenizer
from warmfleet_router.prompt.encoder import PromptEncoder
from warmfleet_router.prompt.template import Message

from tests.bars.rows import Row

SEEN_BYTES, NEW_BYTES, MESSAGE_BYTES = 32 << 10, 200, 2 << 10
TURNS = 50
LONG_BYTES, A_SECOND, SECONDS = 256 << 10, 10, 5
_TEXT = """the of and to in that it was for on as with he be at by his from or which you had not are but
placement <|im_end|> naïve 東京 🙂 3.14 def return(self): {} // -- assistant"""
WORDS = _TEXT.split()


def prose(chance: random.Random, size: int) -> str:
    """About ``size`` bytes: words, numbers, special tokens that someone typed."""
    text = ""
    while len(text.encode()) < size:
        text += " ".join(chance.choice(WORDS) + str(chance.randrange(9999)) for _ in range(30)) + "\n"
    return text


async def next_turns() -> list[Row]:
    """One conversation after another: all but its last message has been seen."""
    chance, taken, cold = random.Random(1), [], []
    model = tokenizer.load(demo.weights())
    memo, plain = PromptEncoder(model), PromptEncoder(model, memo_bytes=0)
    same = True
    for _ in range(TURNS):
        messages: list[Message] = []
        for n in range(SEEN_BYTES // MESSAGE_BYTES):
            role = "assistant" if n % 2 else "user"
            messages.append({"role": role, "content": prose(chance, MESSAGE_BYTES)})
        await memo.chat(messages)
        messages.append({"role": "user", "content": prose(chance, 1)[:NEW_BYTES]})
        start = time.perf_counter()
        remembered = await memo.chat(messages)
        taken.append(time.perf_counter() - start)
        start = time.perf_counter()
        same &= remembered == await plain.chat(messages)
        cold.append(time.perf_counter() - start)
    memo.close()
    plain.close()
    p50, all_anew = statistics.median(taken) * 1e3, statistics.median(cold) * 1e3
    return [
        Row("3.4", "next turn, 32 KB seen, 200 B new: p50", f"{p50:.2f} ms", "<= 1 ms", p50 <= 1.0),
        Row("3.4", "the same without a memo: p50", f"{all_anew:.1f} ms"),
        Row("3.4", f"ids of {TURNS} turns", "equal" if same else "differ", "equal", same),
    ]


async def long_prompts() -> list[Row]:
    chance = random.Random(2)
    encoder = PromptEncoder(tokenizer.load(demo.weights()))
    prompts = [prose(chance, LONG_BYTES) for _ in range(A_SECOND * SECONDS)]
    asked: list[asyncio.Task[bytes]] = []
    longest, last, start = 0.0, time.thread_time(), time.perf_counter()
    while len(asked) < len(prompts) or not all(task.done() for task in asked):
        if len(asked) < len(prompts) and time.perf_counter() - start > len(asked) / A_SECOND:
            call = encoder.chat([{"role": "user", "content": prompts[len(asked)]}])
            asked.append(asyncio.create_task(call))
        await asyncio.sleep(0.001)
        now = time.thread_time()
        longest, last = max(longest, now - last), now
    took = time.perf_counter() - start
    tokens = sum(len(task.result()) for task in asked) // 4
    encoder.close()
    what = f"loop held by {len(prompts)} prompts of 256 KB at {A_SECOND} a second"
    return [
        Row("3.4", what, f"at most {longest * 1e3:.1f} ms", "<= 20 ms", longest <= 0.02),
        Row("3.4", "tokenised meanwhile", f"{tokens / 1e6:.1f} M tokens in {took:.0f} s"),
    ]


def main() -> list[Row]:
    return [*asyncio.run(next_turns()), *asyncio.run(long_prompts())]


if __name__ == "__main__":
    print(*main(), sep="\n")
