"""Where half precision ends: sums over hundreds of tokens, and small differences of large numbers."""

from typing import TypeVar

import torch
from torch import Tensor

Value = TypeVar("Value", Tensor, Tensor | None)


def at_least_single(tensor: Value) -> Value:
    """The tensor in float32 if it is in half precision, else as it is."""
    if tensor is None or tensor.dtype not in (torch.bfloat16, torch.float16):
        return tensor
    return tensor.float()
