"""Exponential moving average of the weights: what a run ends with."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def averaged(module: nn.Module, decay: float) -> AveragedModel:
    """A copy of the module that follows it: ``avg ← d·avg + (1 − d)·weights`` after every step.

    ``d`` grows to ``decay`` as ``(1 + n) / (10 + n)`` over the first steps, so that a short run does not end
    with a memory of its random start. A single set of weights wanders around the optimum with the noise of
    the last batches; their average does not.
    """

    def update(average: Sequence[Tensor], current: Sequence[Tensor], n_averaged: Tensor | int) -> None:
        n = int(n_averaged)
        rate = 1 - min(decay, (1 + n) / (10 + n))
        for mean, value in zip(average, current, strict=True):
            mean.lerp_(value, rate)

    return AveragedModel(module, multi_avg_fn=update)
