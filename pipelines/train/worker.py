"""What Ray Train calls on every training worker."""

import logging
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import ray.train.torch
import ray.util
from torch import nn

from pipelines.train.rank import Rank, train_rank
from pipelines.train.stream import stream_reads
from tadvae.base.errors import UserError
from tadvae.cells.ragged import Cells
from tadvae.data.plan import Window
from tadvae.data.reader import CellReader
from tadvae.data.store_of_model import open_store
from tadvae.data.vocabulary import Vocabulary
from tadvae.model.run_folder import RunFolder
from tadvae.training.ranks import data_parallel_options

PLACEMENT_GROUP = "placement_group"
"""Key of a report: where the workers are, for whoever must clear away after them."""


def train_worker(settings: dict[str, Any]) -> None:
    """Train; called by Ray Train on every worker."""
    logging.getLogger().setLevel(logging.WARNING)  # Ray Train writes a line for every report of every rank
    run = RunFolder(settings["run"])
    train_rank(run, open_store(settings["store"], Vocabulary.load(run.model)), _RayRank(run))


class _RayRank(Rank):
    """A worker of Ray Train: gradients are averaged, Ray Data streams, a report waits for all ranks."""

    def __init__(self, run: RunFolder) -> None:
        context = ray.train.get_context()
        self.number, self.world_size = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()
        self._run = run

    def parallel(self, module: nn.Module) -> nn.Module:
        options = data_parallel_options()
        prepared: nn.Module = ray.train.torch.prepare_model(module, parallel_strategy_kwargs=options)
        return prepared

    def checkpoint(self) -> AbstractContextManager[str] | None:
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is not None:
            folder: AbstractContextManager[str] = checkpoint.as_directory()
            return folder
        return self._run.checkpoints.last()

    def reads(
        self, reader: CellReader, windows: Iterable[Window], n_threads: int
    ) -> Iterator[tuple[np.ndarray, Cells]]:
        return stream_reads(reader, windows, n_threads)

    def report(self, metrics: dict[str, Any], name: str, folder: Path | None) -> None:
        if (group := ray.util.get_current_placement_group()) is not None:
            metrics = metrics | {PLACEMENT_GROUP: group.id.hex()}
        if folder is None:
            ray.train.report(metrics, checkpoint_dir_name=name)
            return
        checkpoint = ray.train.Checkpoint.from_directory(folder)
        try:
            with self._run.place.reachable():
                ray.train.report(metrics, checkpoint=checkpoint, checkpoint_dir_name=name)
        except UserError:  # half a checkpoint would only take room: Ray Train does not know of it
            with suppress(UserError):
                self._run.checkpoints.delete(name)
            raise
