"""What the ranks of a training tell each other; a single process needs no process group."""

import torch
import torch.distributed as dist
from torch import Tensor


def all_agree(value: int, what: str, device: torch.device) -> int:
    """The value, if all ranks have the same: they will wait for each other that often."""
    if dist.is_available() and dist.is_initialized():
        low, high = torch.tensor([value], device=device), torch.tensor([value], device=device)
        dist.all_reduce(low, dist.ReduceOp.MIN)
        dist.all_reduce(high, dist.ReduceOp.MAX)
        if low.item() != high.item():
            raise RuntimeError(f"ranks disagree on {what}: {low.item()} to {high.item()}")
    return value


def any_rank(value: bool, device: torch.device) -> bool:
    """Whether it holds on any rank."""
    if not (dist.is_available() and dist.is_initialized()):
        return value
    found = torch.tensor([int(value)], device=device)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return bool(found.item())


def mean_over_ranks(values: Tensor, world_size: int) -> Tensor:
    """Means of values of all ranks, in place."""
    if world_size > 1 and dist.is_available() and dist.is_initialized():
        dist.all_reduce(values)
        values /= world_size
    return values
