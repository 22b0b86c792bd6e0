"""Copy all tensors of nested dataclasses to a GPU in one piece, without waiting for it."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

ALIGNED = 16
"""Bytes that the position of every tensor in the copy is a multiple of."""

Item = TypeVar("Item")


def to_device(item: Item, device: torch.device) -> Item:
    """The same dataclass with all tensors in it, also in lists, tuples and dataclasses, on a device.

    From page-locked memory the copy does not wait, neither for the work that the GPU still has nor for its
    own end: whatever is started on the same stream later finds it done.
    """
    if device.type == "cpu":
        return item
    tensors = list(_tensors(item))
    sizes = [tensor.numel() * tensor.element_size() for tensor in tensors]
    starts, total = [], 0
    for size in sizes:
        starts.append(total)
        total += -(-size // ALIGNED) * ALIGNED
    host = torch.empty(total, dtype=torch.uint8, pin_memory=device.type == "cuda")
    for tensor, start, size in zip(tensors, starts, sizes, strict=True):
        host[start : start + size].view(tensor.dtype).view(tensor.shape).copy_(tensor)
    there = host.to(device, non_blocking=True)
    copies = [
        there[start : start + size].view(tensor.dtype).view(tensor.shape)
        for tensor, start, size in zip(tensors, starts, sizes, strict=True)
    ]
    result: Item = _with(item, iter(copies))
    return result


def _tensors(item: Any) -> Iterator[Tensor]:
    """All tensors, in the order in which :func:`_with` replaces them."""
    if isinstance(item, Tensor):
        yield item
    elif isinstance(item, list | tuple):
        for part in item:
            yield from _tensors(part)
    elif is_dataclass(item) and not isinstance(item, type):
        for field in fields(item):
            yield from _tensors(getattr(item, field.name))


def _with(item: Any, tensors: Iterator[Tensor]) -> Any:
    """The item with other tensors in the place of its own."""
    if isinstance(item, Tensor):
        return next(tensors)
    if isinstance(item, list | tuple):
        return type(item)(_with(part, tensors) for part in item)
    if is_dataclass(item) and not isinstance(item, type):
        return replace(
            item, **{field.name: _with(getattr(item, field.name), tensors) for field in fields(item)}
        )
    return item
