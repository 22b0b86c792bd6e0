"""What every training worker runs: the whole of training, top to bottom."""

import inspect
import io
import logging
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import ray.train
import ray.train.torch
import ray.util
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from pipelines.train.records import StepRecords, write_restart
from pipelines.train.stream import Prefetcher, stream_reads
from tadvae.base.errors import UserError
from tadvae.base.filesystem import Location
from tadvae.data.batches import Batch
from tadvae.data.plan import Window
from tadvae.data.vocabulary import Vocabulary
from tadvae.effects.file import load_effects
from tadvae.nn.packed import ModelBatch
from tadvae.settings.experiment import ExperimentConfig
from tadvae.store.reader import Store
from tadvae.training.checkpoint import Position, load_checkpoint, save_checkpoint
from tadvae.training.learner import Learner, build_module
from tadvae.training.step_log import read_steps
from tadvae.training.training_set import Earlier, TrainingSet
from tadvae.training.validation import Patience, Validator

CHECKPOINTS = "checkpoints"
PLACEMENT_GROUP = "placement_group"
"""Key of a report: where the workers are, for whoever must clear away after them."""


def train_worker(settings: dict[str, Any]) -> None:
    """Train; called by Ray Train on every worker."""
    run = Location.of(settings["run"])
    config = ExperimentConfig.load_text((run / "config.yaml").read_text(), str(run / "config.yaml"))
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    logging.getLogger().setLevel(logging.WARNING)  # Ray Train writes a line for every report of every rank

    # data: the split decides the bags, the vocabulary everything else
    store = Store.open(settings["store"])
    vocabulary = Vocabulary.load(run / "model")
    groups = pd.read_parquet(io.BytesIO((run / "split.parquet").read_bytes()))
    data = TrainingSet(store, groups, vocabulary, config)
    validates = rank == 0 and config.validation.every is not None
    validator = None
    if validates:
        panels = {i: dataset.genes for i, dataset in enumerate(vocabulary.datasets)}
        effects = load_effects(run / "model", panels) if config.effects.weight else None
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
        write_restart(run, data, start)
        if config.validation.patience is not None:
            for record in read_steps(run):
                if patience.key in record:
                    patience.add(record)

    def earlier(epoch: int) -> Earlier:
        return start.earlier if epoch == start.epoch else ()

    stopped = config.validation.patience is not None and _any(patience.over, device)
    epochs = range(start.epoch, start.epoch if stopped else config.train.epochs)
    _agree(data.n_steps(world_size, start.epoch, start.earlier), "steps of an epoch", device)

    def plan(epoch: int) -> list[Window]:
        done = start.step if epoch == start.epoch else 0
        return data.windows(epoch, rank, world_size, done, earlier(epoch))

    def batches() -> Iterator[tuple[ModelBatch, Batch]]:
        windows = (window for epoch in epochs for window in plan(epoch))
        reads = stream_reads(data.reader, windows, config.stream.threads)
        for epoch in epochs:
            yield from data.batches(plan(epoch), reads, epoch, device)

    log = StepRecords(run, rank, world_size, config.train.log_bags)
    position = start
    with Prefetcher(batches) as stream:
        for epoch in epochs:
            n_steps = data.n_steps(world_size, epoch, earlier(epoch))
            seen = 1 - len(data.left(epoch, earlier(epoch))) / len(data.bags)
            every = config.train.checkpoint_every or n_steps
            while position.step < n_steps:
                clock = time.perf_counter()
                packed, batch = stream.take()
                waited = time.perf_counter() - clock
                now = epoch + seen + (1 - seen) * position.step / n_steps
                terms = learner.step(packed, now, rank=rank, number=position.global_step)
                sizes = torch.tensor([batch.n_cells, batch.n_tokens, len(batch.bags)], device=device)
                means = _mean_over_ranks(torch.stack([*terms.values(), *sizes.float()]), world_size).tolist()
                totals = [round(size * world_size) for size in means[len(terms) :]]
                position = replace(
                    position,
                    step=position.step + 1,
                    global_step=position.global_step + 1,
                    cells_seen=position.cells_seen + totals[0],
                )
                log.add(
                    position,
                    epochs_done=epoch + seen + (1 - seen) * position.step / n_steps,
                    sizes=totals,
                    terms=dict(zip(terms, means, strict=False)),
                    wait=waited,
                    seconds=time.perf_counter() - clock,
                    bags=[bag.bag for bag in batch.bags],
                    skipped=data.skipped,
                )
                if position.step % every == 0 and position.step < n_steps:
                    _report(run, rank, learner, position, log)
            position = replace(position, epoch=epoch + 1, step=0, earlier=())
            if validator is not None and validator.due(epoch):
                scores = validator.score(learner.final)
                patience.add(scores)
                log.extend(scores)
            _report(run, rank, learner, position, log)
            if config.validation.patience is not None and _any(patience.over, device):
                break


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


def _report(run: Location, rank: int, learner: Learner, position: Position, log: StepRecords) -> None:
    """Checkpoint and log, a barrier for all ranks; rank 0 writes."""
    # the epoch is that of the last step; the position already stands at the next
    metrics = {"epoch": position.epoch, "global_step": position.global_step} | log.write()
    if (group := ray.util.get_current_placement_group()) is not None:
        metrics[PLACEMENT_GROUP] = group.id.hex()
    name = f"step-{position.global_step:09d}"
    clock = time.perf_counter()
    if rank:
        ray.train.report(metrics, checkpoint_dir_name=name)
        return
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(Path(folder), learner.module, learner.optimizer, position, learner.average)
        saved = time.perf_counter()
        checkpoint = ray.train.Checkpoint.from_directory(folder)
        try:
            with run.reachable():
                ray.train.report(metrics, checkpoint=checkpoint, checkpoint_dir_name=name)
        except UserError:  # half a checkpoint would only take room: Ray Train does not know of it
            with suppress(UserError):
                (run / CHECKPOINTS / name).delete()
            raise
    log.reported(saved - clock, time.perf_counter() - saved)


def _agree(value: int, what: str, device: torch.device) -> int:
    """The value, if all ranks have the same: they will wait for each other that often."""
    if dist.is_initialized():
        low, high = torch.tensor([value], device=device), torch.tensor([value], device=device)
        dist.all_reduce(low, dist.ReduceOp.MIN)
        dist.all_reduce(high, dist.ReduceOp.MAX)
        if low.item() != high.item():
            raise RuntimeError(f"ranks disagree on {what}: {low.item()} to {high.item()}")
    return value


def _any(value: bool, device: torch.device) -> bool:
    """Whether it holds on any rank."""
    found = torch.tensor([int(value)], device=device)
    if dist.is_initialized():
        dist.all_reduce(found, dist.ReduceOp.MAX)
    return bool(found.item())


def _mean_over_ranks(values: torch.Tensor, world_size: int) -> torch.Tensor:
    if dist.is_initialized() and world_size > 1:
        dist.all_reduce(values)
        values /= world_size
    return values
