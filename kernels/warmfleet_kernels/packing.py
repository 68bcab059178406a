"""One copy from host to device for all the small tables of a step."""

from typing import Any, TypeVar

import torch
from torch import Tensor

Tree = TypeVar("Tree")


def send(tree: Tree, device: torch.device) -> Tree:
    """``tree``, nested tuples, with its tensors as views of one on ``device``.

    They are on the host and have 4 bytes an entry.
    """
    if device.type == "cpu":
        return tree
    parts: list[Tensor] = []
    _collect(tree, parts)
    packed = torch.cat([part.reshape(-1).view(torch.int32) for part in parts]).pin_memory()
    sent = torch.split(packed.to(device, non_blocking=True), [part.numel() for part in parts])
    views = iter([s.view(p.dtype).view(p.shape) for s, p in zip(sent, parts, strict=True)])
    moved: Tree = _rebuild(tree, views)
    return moved


def _collect(node: Any, parts: list[Tensor]) -> None:
    if isinstance(node, Tensor):
        parts.append(node)
    elif isinstance(node, tuple):
        for child in node:
            _collect(child, parts)


def _rebuild(node: Any, views: Any) -> Any:
    if isinstance(node, Tensor):
        return next(views)
    if not isinstance(node, tuple):
        return node
    children = [_rebuild(child, views) for child in node]
    return type(node)(*children) if hasattr(node, "_fields") else tuple(children)
