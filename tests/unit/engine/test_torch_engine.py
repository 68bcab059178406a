"""The engine on a random model: however a sequence is cut, placed or batched, it is the same sequence."""

from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from warmfleet_proto.settings import ConfigError
from warmfleet_worker.engine.base import Copy, Engine, Logprobs, Plan, Run, Sampling, Work
from warmfleet_worker.engine.torch import TorchEngine, layout
from warmfleet_worker.models.llama import Llama

from tests.unit.models.tiny import load, make, save
from tests.unit.worker.driver import Driver, Step

BLOCK, BLOCKS = 4, 64
PROMPT = tuple(Random(0).choices(range(97), k=41))
ROOT = b""


class Told(NamedTuple):
    texts: dict[tuple[int, int], tuple[list[int], list[tuple[tuple[int, ...], float]]]]
    steps: list[Step]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Llama:
    return load(save(make(), tmp_path_factory.mktemp("model")))


@pytest.fixture
def engine(llama: Llama) -> TorchEngine:
    """Its pool holds NaN, so that whatever is read before it is written shows."""
    made = TorchEngine(llama, model="tiny", fingerprint=bytes(32), block_size=BLOCK, total_blocks=BLOCKS)
    made.pool.fill_(torch.nan)
    return made


def work(token_ids: tuple[int, ...], start: int, *runs: Run, **how: Any) -> Work:
    return Work(token_ids, start, runs, ROOT, **how)


def logits(engine: TorchEngine, *works: Work, copies: tuple[Copy, ...] = ()) -> Tensor:
    """Of all rows of one step."""
    return engine.llama.logits(engine.compute(Plan(works, copies)))


def blocks(seed: int, count: int = 12) -> tuple[int, ...]:
    return tuple(Random(seed).sample(range(BLOCKS), count))


def near(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> bool:
    return bool((a - b).abs().max() < tolerance)


def test_satisfies_the_contract(engine: TorchEngine) -> None:
    typed: Engine = engine
    assert (typed.name, typed.model, typed.vocab_size, typed.max_context) == ("torch", "tiny", 97, 256)
    assert typed.block_bytes == 2 * 2 * 2 * BLOCK * 8 * 4


@pytest.mark.parametrize("chunk", [1, 3, 4, 16])
def test_chunks_are_the_whole(engine: TorchEngine, chunk: int) -> None:
    whole = logits(engine, work(PROMPT, 0, Run(blocks(1))))
    engine.pool.fill_(torch.nan)
    parts = [
        logits(engine, work(PROMPT[at : at + chunk], at, Run(blocks(2))))
        for at in range(0, len(PROMPT), chunk)
    ]
    assert near(torch.cat(parts), whole)


def test_a_mixed_batch_is_its_works_alone(engine: TorchEngine) -> None:
    """Two decodes, a chunk on a cached prefix and a first chunk, in blocks that do not overlap."""
    tables = [blocks(3, 48)[i : i + 12] for i in range(0, 48, 12)]
    prompts = [tuple(Random(seed).choices(range(97), k=40)) for seed in range(4)]
    starts = [39, 20, 17, 0]
    counts = [1, 1, 9, 23]
    wanted = [
        logits(engine, work(prompt[: start + count], 0, Run(table)))[start:]
        for prompt, table, start, count in zip(prompts, tables, starts, counts, strict=True)
    ]
    engine.pool.fill_(torch.nan)
    for prompt, table, start in zip(prompts, tables, starts, strict=True):
        if start:
            engine.compute(Plan((work(prompt[:start], 0, Run(table)),)))
    works = [
        work(prompt[start : start + count], start, Run(table))
        for prompt, table, start, count in zip(prompts, tables, starts, counts, strict=True)
    ]
    assert near(logits(engine, *works), torch.cat(wanted))


def test_a_stale_block_changes_nothing(engine: TorchEngine) -> None:
    """The pool's other content, and the tail of a block, may be anything."""
    clean = logits(engine, work(PROMPT[:6], 0, Run(blocks(4))))
    engine.pool.normal_(0, 100)
    assert torch.equal(logits(engine, work(PROMPT[:6], 0, Run(blocks(4)))), clean)


def test_a_shift_by_delta_changes_nothing(engine: TorchEngine) -> None:
    """Keys at home 1000 positions before where they are read, in one run and in two."""
    wanted = logits(engine, work(PROMPT, 0, Run(blocks(5))))
    for delta in (1000, -1000):
        shifted = logits(engine, work(PROMPT, 0, Run(blocks(6), delta)))
        assert near(shifted, wanted)
        engine.compute(Plan((work(PROMPT[:24], 0, Run(blocks(7)[:6], delta)),)))
        runs = (Run(blocks(7)[:3], delta), Run(blocks(7)[3:6], delta), Run(blocks(7)[6:], -7))
        assert near(logits(engine, work(PROMPT[24:], 24, *runs)), wanted[24:])


def test_a_work_may_write_across_runs(engine: TorchEngine) -> None:
    wanted = logits(engine, work(PROMPT, 0, Run(blocks(5))))
    table = blocks(8)
    runs = (Run(table[:2], 5), Run(table[2:3]), Run(table[3:7], -20), Run(table[7:], -20))
    assert near(logits(engine, work(PROMPT, 0, *runs)), wanted)


def test_the_sign_of_delta_matters(engine: TorchEngine) -> None:
    """Keys written at home 0 and read 8 positions on: what a wrong delta gives is far off."""
    table = blocks(9)
    engine.compute(Plan((work(PROMPT[8:16], 0, Run(table[2:4])),)))
    engine.compute(Plan((work(PROMPT[:8], 0, Run(table[:2])),)))
    keys = engine.pool[list(table[2:4]), 0, 0].clone()
    engine.compute(Plan((work(PROMPT[8:16], 8, Run(table[:2]), Run(table[4:6], 8)),)))
    assert near(engine.pool[list(table[4:6]), 0, 0], keys)  # layer 0: keys depend on token and home alone
    right, wrong = (
        logits(engine, work(PROMPT[16:20], 16, Run(table[:2]), Run(table[4:6], delta), Run(table[6:])))
        for delta in (8, -8)
    )
    wanted = logits(engine, work(PROMPT[:20], 0, Run(blocks(10))))[16:]
    assert near(right, wanted)
    assert not near(wrong, wanted, 1e-2)


def test_copies_come_first(engine: TorchEngine) -> None:
    """A fork: the partial tail is copied, then both go on in blocks of their own."""
    table = blocks(11)
    engine.compute(Plan((work(PROMPT[:10], 0, Run(table[:3])),)))
    own = (*table[:2], table[5])
    token = work(PROMPT[10:11], 10, Run(own))
    forked = logits(engine, token, copies=(Copy(table[2], table[5]),))
    assert near(forked, logits(engine, work(PROMPT[:11], 0, Run(blocks(12))))[10:])
    assert engine.execute(Plan((), (Copy(table[0], table[7]),))).drawn == ()
    assert torch.equal(engine.pool[table[7]], engine.pool[table[0]])


def test_draws_and_scores(engine: TorchEngine) -> None:
    """Each work gets its own: nothing, one greedy token with scores, three choices from one row."""
    tables = [blocks(13, 36)[i : i + 12] for i in (0, 12, 24)]
    seeded = Sampling(1.0, seed=7)
    plan = Plan(
        (
            work(PROMPT, 0, Run(tables[0])),
            work(PROMPT, 0, Run(tables[1]), sampling=Sampling(logprobs=2)),
            work(PROMPT, 0, Run(tables[2]), sampling=seeded, choices=(0, 1, 5), completion_position=3),
        )
    )
    nothing, greedy, three = engine.execute(plan).drawn
    row = logits(engine, work(PROMPT, 0, Run(blocks(1))))[-1]
    assert nothing == type(nothing)()
    assert greedy.token_ids == (row.argmax(),)
    assert greedy.logprobs[0].top_ids == tuple(row.topk(2).indices.tolist())
    assert len(three.token_ids) == 3
    assert three.logprobs == ()
    alone = [
        engine.execute(Plan((replace(plan.works[2], choices=(choice,)),))).drawn[0].token_ids[0]
        for choice in (0, 1, 5)
    ]
    assert list(three.token_ids) == alone
    many = replace(plan.works[2], choices=tuple(range(40)))
    assert len(set(engine.execute(Plan((many,))).drawn[0].token_ids)) > 5


@pytest.mark.parametrize("chunk", [1, 7, 41])
def test_prompt_scores_cross_chunks(engine: TorchEngine, chunk: int) -> None:
    scores: list[Logprobs] = []
    for at in range(0, len(PROMPT), chunk):
        end = at + chunk
        following = PROMPT[end] if end < len(PROMPT) else None
        part = work(PROMPT[at:end], at, Run(blocks(1)), prompt_logprobs=1, next_id=following)
        scores += engine.execute(Plan((part,))).drawn[0].prompt_logprobs
    wanted = logits(engine, work(PROMPT, 0, Run(blocks(2)))).log_softmax(-1)
    assert len(scores) == len(PROMPT) - 1
    for position, score in enumerate(scores, start=1):
        assert abs(score.logprob - wanted[position - 1, PROMPT[position]]) < 1e-5
        assert score.top_ids == (wanted[position - 1].argmax(),)


def test_the_step_after_takes_the_tokens_that_the_one_before_draws(engine: TorchEngine) -> None:
    """Planned one at a time and with one ahead: the same tokens and scores."""
    apart, ahead = (conversations(engine, depth) for depth in (1, 2))
    assert apart.texts == ahead.texts
    assert any(work.follows is not None for step in ahead.steps for work in step.plan.works)
    assert not any(work.follows is not None for step in apart.steps for work in step.plan.works)


@pytest.mark.parametrize("depth", [1, 2])
def test_an_answer_that_was_cut_goes_on_with_the_tokens_that_it_would_have_had(
    engine: TorchEngine, depth: int
) -> None:
    """At another worker: of these logits, which no batch or chunk changes. In bfloat16 each of them does."""
    engine.depth = depth

    def drawn(*before: int) -> list[int]:
        driver = Driver(engine.total_blocks, block_size=BLOCK, chunk_tokens=16)
        driver.engine = engine  # type: ignore[assignment]
        left = 12 - len(before)
        request = driver.finish([*PROMPT, *before], left, sampling=Sampling(1.0, seed=3), drawn=len(before))
        return [*before, *driver.text(request).token_ids]

    whole = drawn()
    assert len(whole) == 12
    assert [drawn(*whole[:cut]) for cut in (1, 5, 11)] == [whole] * 3


def conversations(engine: TorchEngine, depth: int) -> Told:
    """Greedy and sampled ones, some with choices or scores, that come one after another."""
    engine.depth = depth
    driver = Driver(engine.total_blocks, block_size=BLOCK, chunk_tokens=16)
    driver.engine = engine  # type: ignore[assignment]
    for n in range(7):
        sampling = Sampling(0.9, seed=n, logprobs=1 if n == 2 else None) if n % 2 == 0 else Sampling()
        prompt = [*PROMPT[:8], *PROMPT[n : 3 * n + 1]]
        scored = 1 if n == 5 else None
        driver.submit(prompt, 4 + n, choices=1 + n // 3, sampling=sampling, prompt_logprobs=scored)
        driver.step()
    driver.run()
    texts = {
        (key.handle, choice): (text.token_ids, [(s.top_ids, round(s.logprob, 4)) for s in text.logprobs])
        for (key, choice), text in driver.texts.items()
    }
    return Told(texts, driver.steps)


def test_layout_names_dtype_and_shape(engine: TorchEngine) -> None:
    shape = engine.pool.shape
    assert engine.layout == layout(torch.float32, torch.Size((1, *shape[1:])))
    others = {layout(torch.bfloat16, shape), layout(torch.float32, torch.Size((*shape[:4], 8, 8)))}
    assert len({engine.layout, *others}) == 3


def test_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = str(save(make(), tmp_path / "tiny"))
    stages: list[tuple[str, float]] = []
    engine = TorchEngine.load(
        folder,
        name="",
        dtype="float32",
        device="cpu",
        memory_bytes=10_000,
        progress=lambda *at: stages.append(at),
    )
    assert (engine.model, engine.total_blocks, engine.block_bytes) == ("tiny", 2, 4096)
    assert (stages[0][1], stages[-1][1]) == (0.0, 1.0)
    assert [done for _, done in stages] == sorted(done for _, done in stages)
    refused: list[tuple[dict[str, Any], str]] = [
        ({"dtype": "int8", "total_blocks": 1}, "int8"),
        ({"device": "warp:0", "total_blocks": 1}, "warp"),
        ({"memory_bytes": 100}, "one is 4096 bytes"),
        ({}, "total_blocks nor memory_bytes"),
    ]
    for how, named in refused:
        with pytest.raises(ConfigError, match=named):
            TorchEngine.load(folder, name="", **{"dtype": "float32"} | how)
