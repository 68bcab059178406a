"""Small tables from host to device in one copy, and results back, without waiting for the device."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

ALIGNED = 4  # words: every table starts at 16 bytes, so that Triton compiles a kernel once, not for each case

Tree = TypeVar("Tree")


class Packed(NamedTuple):
    words: Tensor  # int32, all parts one after another
    sizes: list[int]  # words of each, those up to the next part included


def send(tree: Tree, device: torch.device) -> Tree:
    """``tree``, nested tuples, with its tensors as views of one on ``device``.

    They are on the host and have 4 bytes an entry.
    """
    if device.type == "cpu":
        return tree
    parts = list(_leaves(tree))
    if not parts:
        return tree
    packed = pack(parts, pinned=True)
    sent = torch.split(packed.words.to(device, non_blocking=True), packed.sizes)
    views = iter([s[: p.numel()].view(p.dtype).view(p.shape) for s, p in zip(sent, parts, strict=True)])
    moved: Tree = _replaced(tree, lambda _: next(views))
    return moved


def fetch(tree: Tree) -> Tree:
    """``tree`` with its tensors on the host: filled when the device has come to an event recorded after."""
    moved: Tree = _replaced(tree, lambda leaf: leaf.to("cpu", non_blocking=True))
    return moved


def pack(parts: Sequence[Tensor], *, pinned: bool = False) -> Packed:
    """The bits of the parts, each from a multiple of ``ALIGNED`` words on."""
    flat = [part.reshape(-1).view(torch.int32) for part in parts]
    sizes = [-(-len(words) // ALIGNED) * ALIGNED for words in flat]
    packed = torch.zeros(sum(sizes), dtype=torch.int32, pin_memory=pinned)
    for place, words in zip(torch.split(packed, sizes), flat, strict=True):
        place[: len(words)] = words
    return Packed(packed, sizes)


def _leaves(node: Any) -> Iterator[Tensor]:
    if isinstance(node, Tensor):
        yield node
    elif isinstance(node, tuple):
        for child in node:
            yield from _leaves(child)


def _replaced(node: Any, leaf: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(node, Tensor):
        return leaf(node)
    if not isinstance(node, tuple):
        return node
    children = [_replaced(child, leaf) for child in node]
    return type(node)(*children) if hasattr(node, "_fields") else tuple(children)
