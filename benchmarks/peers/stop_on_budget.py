"""Ends a training of Lightning after the epoch in which the CPU seconds of the budget are spent."""

from lightning.pytorch import Callback
from prediction_case import Clock


class StopOnBudget(Callback):
    """For programs that train with Lightning."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_epoch_end(self, trainer, _) -> None:
        if self.clock.over:
            trainer.should_stop = True
