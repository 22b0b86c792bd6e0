"""What every training worker runs: from a run's folder to the epoch loop, with checkpoints and reports."""

import inspect
import logging
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import ray.util
from torch.nn.parallel import DistributedDataParallel

from pipelines.train.records import StepRecords, log_restart
from pipelines.train.stream import Prefetcher, stream_reads
from tadvae.base.errors import UserError
from tadvae.data.batches import Batch
from tadvae.data.vocabulary import Vocabulary
from tadvae.effects.file import load_effects
from tadvae.model.run_folder import RunFolder
from tadvae.nn.packed import ModelBatch
from tadvae.store.reader import Store
from tadvae.training.checkpoint import Position, load_checkpoint, save_checkpoint
from tadvae.training.epochs import Observer, StepDone, train_epochs
from tadvae.training.learner import Learner, build_module
from tadvae.training.ranks import any_rank
from tadvae.training.training_set import TrainingSet
from tadvae.training.validation import Patience, Validator

PLACEMENT_GROUP = "placement_group"
"""Key of a report: where the workers are, for whoever must clear away after them."""


def train_worker(settings: dict[str, Any]) -> None:
    """Train; called by Ray Train on every worker."""
    run = RunFolder(settings["run"])
    config = run.config()
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    logging.getLogger().setLevel(logging.WARNING)  # Ray Train writes a line for every report of every rank

    # data: the split decides the bags, the vocabulary everything else
    store = Store.open(settings["store"])
    vocabulary = Vocabulary.load(run.model)
    groups = run.split()
    data = TrainingSet(store, groups, vocabulary, config)
    validator = None
    if rank == 0 and config.validation.every is not None:
        panels = {i: dataset.genes for i, dataset in enumerate(vocabulary.datasets)}
        effects = load_effects(run.model, panels) if config.effects.weight else None
        validator = Validator(store, groups, vocabulary, config, effects)

    # model: every rank starts from the same weights
    module = build_module(config, vocabulary)
    # buffers are constants, the same on every rank; newer torch has another name for the option
    options = inspect.signature(DistributedDataParallel).parameters
    sync = "forward_sync_buffers" if "forward_sync_buffers" in options else "broadcast_buffers"
    model = ray.train.torch.prepare_model(module, parallel_strategy_kwargs={sync: False})
    learner = Learner(config, module, model)
    start = Position(
        world_size=world_size, bags_per_batch=config.stream.bags_per_batch, vocabulary=vocabulary.hash
    )
    start = _restore(start, learner)
    patience = Patience(config.validation)
    if rank == 0:
        log_restart(run, data, start)
        if config.validation.patience is not None:
            for record in run.steps():
                if patience.key in record:
                    patience.add(record)

    stopped = config.validation.patience is not None and any_rank(patience.over, device)
    epochs = range(start.epoch, start.epoch if stopped else config.train.epochs)

    def batches() -> Iterator[tuple[ModelBatch, Batch]]:
        read = partial(stream_reads, data.reader, n_threads=config.stream.threads)
        return data.stream(start, epochs, read, rank=rank, world_size=world_size, device=device)

    log = StepRecords(run, rank, world_size, config.train.log_bags)
    with Prefetcher(batches) as stream:
        train_epochs(
            learner,
            data,
            stream,
            start,
            epochs,
            rank=rank,
            world_size=world_size,
            patience=patience,
            validator=validator,
            observer=_ReportToRay(run, rank, learner, log),
        )


class _ReportToRay(Observer):
    """Logs every step; writes checkpoints and reports them, a barrier for all ranks. Rank 0 writes."""

    def __init__(self, run: RunFolder, rank: int, learner: Learner, log: StepRecords) -> None:
        self._run, self._rank, self._learner, self._log = run, rank, learner, log

    def step_done(self, done: StepDone) -> None:
        self._log.add(done)

    def epoch_done(self, position: Position, scores: dict[str, float] | None) -> None:
        if scores is not None:
            self._log.extend(scores)
        self.checkpoint_due(position)

    def checkpoint_due(self, position: Position) -> None:
        run, log, learner = self._run, self._log, self._learner
        # the epoch is that of the last step; the position already stands at the next
        metrics = {"epoch": position.epoch, "global_step": position.global_step} | log.write()
        if (group := ray.util.get_current_placement_group()) is not None:
            metrics[PLACEMENT_GROUP] = group.id.hex()
        name = f"step-{position.global_step:09d}"
        clock = time.perf_counter()
        if self._rank:
            ray.train.report(metrics, checkpoint_dir_name=name)
            return
        with tempfile.TemporaryDirectory() as folder:
            save_checkpoint(Path(folder), learner.module, learner.optimizer, position, learner.average)
            saved = time.perf_counter()
            checkpoint = ray.train.Checkpoint.from_directory(folder)
            try:
                with run.place.reachable():
                    ray.train.report(metrics, checkpoint=checkpoint, checkpoint_dir_name=name)
            except UserError:  # half a checkpoint would only take room: Ray Train does not know of it
                with suppress(UserError):
                    run.delete_checkpoint(name)
                raise
        log.reported(saved - clock, time.perf_counter() - saved)


def _restore(start: Position, learner: Learner) -> Position:
    """Go on from Ray Train's last checkpoint, if there is one."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return start
    with checkpoint.as_directory() as folder:
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
