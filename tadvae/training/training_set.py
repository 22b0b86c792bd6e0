"""The training side of a store: its bags in the order of a plan, as batches of the network."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import pandas as pd
import torch

from tadvae.cells.ragged import Cells
from tadvae.data.batches import Batch, BatchAssembler
from tadvae.data.build_vocabulary import context_rows, interventions
from tadvae.data.plan import StepCost, Window, bags_left, divided_bags, epoch_windows, steps_per_epoch
from tadvae.data.reader import CellReader, load_controls, training_bags
from tadvae.data.views import views_of
from tadvae.data.vocabulary import Vocabulary
from tadvae.nn.pack import pack
from tadvae.nn.packed import ModelBatch
from tadvae.settings.experiment import ExperimentConfig
from tadvae.store.reader import Store
from tadvae.training.checkpoint import Earlier, Position

TOKEN_IN_ENCODER = 20.0
"""Time of a token in the encoder, in units of a token of an observed cell (one core, ``inducing``)."""


def planned_bags(store: Store, groups: pd.DataFrame, config: ExperimentConfig) -> pd.DataFrame:
    """The bags of an epoch: the training bags of a split, or their parts, with the ids of the plan."""
    bags = training_bags(store, groups, config.split, config.stream.control_bags)
    return divided_bags(bags, config.stream.cells_per_bag, len(store.bags))


class TrainingSet:
    """The training side of a store: its bags in the order of a plan, as batches of the model.

    Attributes
    ----------
    bags
        Rows of ``store.bags``, or their parts (:func:`tadvae.data.plan.divided_bags`).
    reader
        Reads their cells.
    """

    def __init__(
        self, store: Store, groups: pd.DataFrame, vocabulary: Vocabulary, config: ExperimentConfig
    ) -> None:
        self.config, self.vocabulary = config, vocabulary
        self.bags = planned_bags(store, groups, config)
        self.reader = CellReader(store, views_of(store, vocabulary), config.split)
        has_encoder = config.model.encoder.kind != "none"
        self._cost = StepCost(store.control, TOKEN_IN_ENCODER if has_encoder else 1.0)
        every = training_bags(store, groups, config.split)
        controls = load_controls(self.reader, every, config.stream.max_controls)
        self._assembler = BatchAssembler(
            store.bags,
            controls,
            store.control,
            config.stream.bags_per_batch,
            config.seed,
            config.stream.cells_per_bag,
        )
        self._contexts = context_rows(store, vocabulary)
        self._interventions = interventions(store, vocabulary)

    @property
    def skipped(self) -> int:
        """Bags that the batches left out so far, since all of their cells are held out."""
        return self._assembler.skipped

    def left(self, epoch: int, earlier: Earlier = ()) -> pd.DataFrame:
        """The bags that are left of an epoch; see :func:`tadvae.data.plan.bags_left`."""
        return bags_left(
            self.bags,
            self.config.stream,
            seed=self.config.seed,
            epoch=epoch,
            cost=self._cost,
            earlier=earlier,
        )

    def n_steps(self, world_size: int = 1, epoch: int = 0, earlier: Earlier = ()) -> int:
        """Steps of every rank in one epoch, or in what is left of it."""
        return steps_per_epoch(len(self.left(epoch, earlier)), self.config.stream, world_size)

    def windows(
        self, epoch: int, rank: int = 0, world_size: int = 1, steps_done: int = 0, earlier: Earlier = ()
    ) -> list[Window]:
        """What a rank reads in an epoch, without its first ``steps_done`` steps."""
        return epoch_windows(
            self.left(epoch, earlier),
            self.config.stream,
            seed=self.config.seed,
            epoch=epoch,
            rank=rank,
            world_size=world_size,
            cost=self._cost,
            skip=steps_done * self.config.stream.bags_per_batch,
        )

    def stream(
        self,
        start: Position,
        epochs: Iterable[int],
        read: Callable[[Iterable[Window]], Iterator[tuple[np.ndarray, Cells]]],
        *,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
        degree: np.ndarray | None = None,
    ) -> Iterator[tuple[ModelBatch, Batch]]:
        """A rank's batches of some epochs in one stream, from a position on.

        Parameters
        ----------
        start
            Of the first step; its epoch is the first of ``epochs``.
        read
            Reads, in order, what windows of several epochs plan.
        device, degree
            See :func:`tadvae.nn.pack.pack`.
        """

        def plan(epoch: int) -> list[Window]:
            if epoch != start.epoch:
                return self.windows(epoch, rank, world_size)
            return self.windows(epoch, rank, world_size, start.step, start.earlier)

        reads = read(window for epoch in epochs for window in plan(epoch))
        for epoch in epochs:
            yield from self.batches(plan(epoch), reads, epoch, device, degree)

    def batches(
        self,
        windows: Iterable[Window],
        reads: Iterator[tuple[np.ndarray, Cells]],
        epoch: int,
        device: torch.device | str = "cpu",
        degree: np.ndarray | None = None,
    ) -> Iterator[tuple[ModelBatch, Batch]]:
        """Batches of an epoch, from what was read of its windows."""
        for batch in self._assembler.batches(windows, reads, epoch):
            yield (
                pack(batch, self.vocabulary, self._contexts, self._interventions, device, degree),
                batch,
            )
