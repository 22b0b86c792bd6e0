"""Exponential moving average of the weights: what a run ends with."""

from copy import deepcopy
from typing import Generic, TypeVar

import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)


class MovingAverage(Generic[Module]):
    """A copy of a module that follows it: ``avg ← d·avg + (1 − d)·weights`` after every step.

    ``d`` grows to ``decay`` as ``(1 + n) / (10 + n)`` over the first steps, so that a short run does not end
    with a memory of its random start. A single set of weights wanders around the optimum with the noise of
    the last batches; their average does not.

    Attributes
    ----------
    module
        The copy. Its buffers are constants.
    n_steps
        Number n of steps that it has followed.
    """

    def __init__(self, module: Module, decay: float) -> None:
        self.module = deepcopy(module)
        self.module.requires_grad_(False)
        self.n_steps = 0
        self._decay = decay

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Follow one step of the module."""
        rate = 1 - min(self._decay, (1 + self.n_steps) / (10 + self.n_steps)) if self.n_steps else 1.0
        torch._foreach_lerp_(list(self.module.parameters()), list(module.parameters()), rate)
        self.n_steps += 1
