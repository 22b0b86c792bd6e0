"""torch.compile for the parts that are plain tensor code; the pathway kernels are compiled already."""

import logging
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

Terms = tuple[Tensor, dict[str, Tensor]]

log = logging.getLogger("tadvae")


def parts(module: nn.Module) -> Iterator[nn.Module]:
    """What is compiled: factors, causal layer, decoder, and the token encoder where there is one."""
    for name in ("factors", "causal", "decoder"):
        yield getattr(module, name)
    encoder = getattr(module.pathway, "encoder", None)
    if isinstance(encoder, nn.Module):
        yield encoder


def compile_parts(module: nn.Module) -> None:
    """Have the parts compiled when they are first called; shapes may differ from call to call."""
    for part in parts(module):
        part.compile(dynamic=True)


def or_eager(module: nn.Module, step: Callable[[], Terms]) -> Terms:
    """Call ``step``; where compiling fails, say so once and call it again without."""
    try:
        return step()
    except torch._dynamo.exc.TorchDynamoException as error:
        reason = str(error).strip().splitlines()[0][:160]
        log.warning("train.compile: not compiled (%s); the run goes on without.", reason)
        for part in parts(module):
            part._compiled_call_impl = None
        return step()
