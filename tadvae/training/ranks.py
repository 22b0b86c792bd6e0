"""What the ranks of a training tell each other; a single process needs no process group."""

import inspect
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


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


def data_parallel_options() -> dict[str, bool]:
    """Options of DDP for this network.

    Buffers are constants, the same on every rank, so none is sent. Gradients are views of the buckets that
    are sent, and every step uses the same parameters: a batch of controls alone has gradients of zero.
    """
    # newer torch has another name for the option
    known = inspect.signature(DistributedDataParallel).parameters
    sync = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    return {sync: False, "gradient_as_bucket_view": True, "static_graph": True}


def data_parallel(module: nn.Module, device: torch.device) -> nn.Module:
    """The network as a rank calls it: gradients are means over ranks."""
    ids = [device] if device.type == "cuda" else None
    options: dict[str, Any] = {**data_parallel_options()}
    return DistributedDataParallel(module, device_ids=ids, **options)
