"""Bar 7: the cache on against off, the same rows' logits."""

import dataclasses
from collections.abc import Iterator
from random import Random

import torch
from torch import Tensor
from warmfleet_worker.engine.base import Plan, Run, Work
from warmfleet_worker.engine.torch import TorchEngine
from warmfleet_worker.models.llama import Layer, Llama, Weights

from tests.bars.gpu import model
from tests.bars.rows import Row

LAYERS = 8
PROMPT = 1500
NEW = (5, 200, 900)  # decoded row by row; a graph over pages; a slab
EXACT = 1e-4


def cache_on_and_off() -> Iterator[Row]:
    """bf16: no further from each other than two results are whose errors, each as large as that of bf16
    against float32 of the same weights, have nothing to do with each other."""
    config = dataclasses.replace(model.LLAMA_3_8B, layers=LAYERS)
    weights = model.weights(config)
    half = _off(_engine(Llama(config, weights)), max(NEW))
    wide = _engine(Llama(config, _widened(weights)))
    exact = _off(wide, max(NEW))
    ours = _engine(Llama(config, weights))
    for new in NEW:
        apart = (_on(wide, new) - exact[-new:]).abs().max().item()
        what = f"cache on against off, {new} new of {PROMPT}"
        yield Row("7", f"{what}, float32", f"{apart:.1e}", f"<= {EXACT:.0e}", apart <= EXACT)
        rounding = (half[-new:] - exact[-new:]).norm().item() / exact[-new:].norm().item()
        apart = (_on(ours, new) - half[-new:]).norm().item() / exact[-new:].norm().item()
        limit = 2**0.5 * rounding
        wanted = f"<= {limit:.4f}, 2 ** .5 x bf16 to float32"
        yield Row("7", f"{what}, bf16, relative", f"{apart:.4f}", wanted, apart <= limit)


def _engine(llama: Llama) -> TorchEngine:
    made = TorchEngine(llama, model="random", fingerprint=bytes(32), block_size=16, total_blocks=256)
    made.pool.fill_(torch.nan)
    return made


@torch.inference_mode()
def _off(engine: TorchEngine, new: int) -> Tensor:
    """Logits of the last ``new`` rows, the prompt in one chunk."""
    return engine.llama.logits(engine.compute(Plan((_work(0, PROMPT),)))[-new:])


@torch.inference_mode()
def _on(engine: TorchEngine, new: int) -> Tensor:
    """The same, what is before them computed by an earlier step."""
    engine.compute(Plan((_work(0, PROMPT - new),)))
    return engine.llama.logits(engine.compute(Plan((_work(PROMPT - new, PROMPT),))))


def _work(start: int, end: int) -> Work:
    random = Random(3)
    blocks = tuple(random.sample(range(256), -(-PROMPT // 16)))
    token_ids = tuple(random.choices(range(128_000), k=PROMPT))
    return Work(token_ids[start:end], start, (Run(blocks[: -(-end // 16)]),), b"")


def _widened(weights: Weights) -> Weights:
    layers = tuple(Layer(*map(_wide, _fields(layer))) for layer in weights.layers)
    return Weights(weights.embedding.float(), layers, weights.norm.float(), weights.head.float())


def _fields(layer: Layer) -> list[Tensor | None]:
    return [getattr(layer, field.name) for field in dataclasses.fields(layer)]


def _wide(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.float()
