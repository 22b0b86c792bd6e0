"""Ends a training of scvi-tools after the epoch in which the CPU seconds of the budget are spent."""

from importlib import import_module

from prediction_case import Clock
from scvi.train import Trainer

# older releases of scvi-tools train with the package of another name, which newer ones have beside
_NEW = any(base.__module__.startswith("lightning.") for base in Trainer.__mro__)


class StopOnBudget(import_module("lightning.pytorch" if _NEW else "pytorch_lightning").Callback):
    """For programs that train with scvi-tools."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_epoch_end(self, trainer, _) -> None:
        if self.clock.over:
            trainer.should_stop = True
