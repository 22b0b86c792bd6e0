"""What every process of a training does, from a run's folder to the epoch loop, however it was started."""

import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pipelines.train.prefetch import Prefetcher
from pipelines.train.records import StepRecords, log_restart
from tadvae.cells.ragged import Cells
from tadvae.data.batches import Batch
from tadvae.data.plan import Window
from tadvae.data.reader import CellReader
from tadvae.data.vocabulary import Vocabulary
from tadvae.effects.file import load_effects
from tadvae.model.checkpoints import checkpoint_name
from tadvae.model.run_folder import RunFolder
from tadvae.model.weights import WEIGHTS
from tadvae.nn.packed import ModelBatch
from tadvae.store.reader import Store
from tadvae.training.checkpoint import AVERAGE, Position, load_checkpoint, save_checkpoint
from tadvae.training.epochs import Observer, StepDone, train_epochs
from tadvae.training.learner import Learner, build_module
from tadvae.training.ranks import any_rank
from tadvae.training.training_set import TrainingSet
from tadvae.training.validation import Patience, Validator


class Rank(ABC):
    """One process of a training: what it has from the program that started it.

    Attributes
    ----------
    number, world_size
        Which of how many processes this is.
    device
        Where its network is.
    """

    number: int = 0
    world_size: int = 1
    device: torch.device = torch.device("cpu")

    def parallel(self, module: nn.Module) -> nn.Module:
        """The network as it is called in a step; with several ranks, one that averages gradients."""
        return module

    @abstractmethod
    def checkpoint(self) -> AbstractContextManager[str] | None:
        """The folder of the last checkpoint; None where there is none."""

    @abstractmethod
    def reads(
        self, reader: CellReader, windows: Iterable[Window], n_threads: int
    ) -> Iterator[tuple[np.ndarray, Cells]]:
        """Read what the windows plan, in order."""

    @abstractmethod
    def report(self, metrics: dict[str, Any], name: str, folder: Path | None) -> None:
        """Keep a checkpoint, whose files rank 0 has written into a folder, and tell of it."""


def train_rank(run: RunFolder, store: Store, rank: Rank) -> None:
    """Train a run that has begun, from its last checkpoint on, as one of its ranks."""
    config = run.config()
    # data: the split decides the bags, the vocabulary everything else
    vocabulary = Vocabulary.load(run.model)
    groups = run.split()
    data = TrainingSet(store, groups, vocabulary, config)
    validator = None
    if rank.number == 0 and config.validation.every is not None:
        panels = {i: dataset.genes for i, dataset in enumerate(vocabulary.datasets)}
        effects = load_effects(run.model, panels) if config.effects.weight else None
        validator = Validator(store, groups, vocabulary, config, effects)

    # model: every rank starts from the same weights
    module = build_module(config, vocabulary, run.start())
    learner = Learner(config, module, rank.parallel(module), vocabulary)
    start = Position(
        world_size=rank.world_size, bags_per_batch=config.stream.bags_per_batch, vocabulary=vocabulary.hash
    )
    start = _restore(start, learner, rank)
    patience = Patience(config.validation)
    if rank.number == 0:
        log_restart(run, data, start)
        if config.validation.patience is not None:
            for record in run.steps():
                if patience.key in record:
                    patience.add(record)

    stopped = config.validation.patience is not None and any_rank(patience.over, rank.device)
    epochs = range(start.epoch, start.epoch if stopped else config.train.epochs)

    degree = module.pathway.edges.degree()

    def batches() -> Iterator[tuple[ModelBatch, Batch]]:
        read = partial(rank.reads, data.reader, n_threads=config.stream.threads)
        return data.stream(
            start,
            epochs,
            read,
            rank=rank.number,
            world_size=rank.world_size,
            device=rank.device,
            degree=degree,
        )

    log = StepRecords(run, rank.number, rank.world_size, config.train.log_bags)
    with Prefetcher(batches) as stream:
        train_epochs(
            learner,
            data,
            stream,
            start,
            epochs,
            rank=rank.number,
            world_size=rank.world_size,
            patience=patience,
            validator=validator,
            observer=_Checkpoints(rank, learner, log),
        )


class _Checkpoints(Observer):
    """Logs every step; writes and reports checkpoints. Rank 0 writes."""

    def __init__(self, rank: Rank, learner: Learner, log: StepRecords) -> None:
        self._rank, self._learner, self._log = rank, learner, log

    def step_done(self, done: StepDone) -> None:
        self._log.add(done)

    def epoch_done(self, position: Position, scores: dict[str, float] | None) -> None:
        if scores is not None:
            self._log.extend(scores)
        self.checkpoint_due(position)

    def checkpoint_due(self, position: Position) -> None:
        rank, log, learner = self._rank, self._log, self._learner
        # the epoch is that of the last step; the position already stands at the next
        metrics = {"epoch": position.epoch, "global_step": position.global_step} | log.write()
        name = checkpoint_name(position.global_step)
        if rank.number:
            rank.report(metrics, name, None)
            return
        clock = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            save_checkpoint(Path(folder), learner.module, learner.optimizer, position, learner.average)
            saved = time.perf_counter()
            rank.report(metrics, name, Path(folder))
        log.reported(saved - clock, time.perf_counter() - saved)


def _restore(start: Position, learner: Learner, rank: Rank) -> Position:
    """Go on from the last checkpoint, if there is one."""
    checkpoint = rank.checkpoint()
    if checkpoint is None:
        return start
    with checkpoint as folder:
        saved = load_checkpoint(
            Path(folder), learner.module, learner.optimizer, start.vocabulary, learner.average
        )
    if (saved.world_size, saved.bags_per_batch) == (start.world_size, start.bags_per_batch):
        return saved
    stretch = ((saved.world_size, saved.step * saved.bags_per_batch),) if saved.step else ()
    return replace(
        start,
        epoch=saved.epoch,
        global_step=saved.global_step,
        cells_seen=saved.cells_seen,
        earlier=saved.earlier + stretch,
    )


def keep_weights(run: RunFolder, folder: str) -> None:
    """Make the weights of a checkpoint the final ones of the run; of their average, if there is one."""
    average = Path(folder) / AVERAGE
    run.finish((average if average.exists() else Path(folder) / WEIGHTS).read_bytes())
