"""``tadvae train``: Ray Train runs the training loop on every worker, Ray Data feeds it.

A run is a folder::

    RUN/config.yaml run.json split.parquet   what was asked for, resolved
    RUN/model/                               vocabulary, model card, and at the end the weights
    RUN/log/steps-*.jsonl                    one line a step
    RUN/log/restart-*.json                   what a restart did again, and which bags it repeats
    RUN/tensorboard/                         the same log for TensorBoard; other trackers may add their own
    RUN/checkpoints/                         Ray Train's storage
"""

import inspect
import io
import json
import logging
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import ray
import ray.train
import ray.train.torch
import ray.util
import torch
import torch.distributed as dist
from ray.train.v2.api.exceptions import TrainingFailedError
from torch.nn.parallel import DistributedDataParallel

from pipelines.cluster import ray_map, ray_session
from pipelines.phases import phases
from pipelines.progress import StepLog
from pipelines.records import StepRecords, write_restart
from pipelines.stream import Prefetcher, stream_reads
from pipelines.trackers import check_trackers, trackers
from tadvae import __version__
from tadvae.batch import Batch
from tadvae.card import write_card
from tadvae.cells import CONTROLS, write_controls
from tadvae.checkpoint import AVERAGE, WEIGHTS, Position, load_checkpoint, save_checkpoint
from tadvae.effects.file import load_effects, save_effects
from tadvae.errors import UserError
from tadvae.evaluation.metrics import HIGHER_IS_BETTER
from tadvae.evaluation.splits import TRAIN, VALIDATION
from tadvae.evaluation.validation import Patience, Validator
from tadvae.experiment import ExperimentConfig
from tadvae.filesystem import Location, absolute
from tadvae.module import ModelBatch
from tadvae.prepare import training_bags
from tadvae.step_log import read_steps
from tadvae.store.plan import Window, rank_bags, steps_per_epoch
from tadvae.store.reader import Store
from tadvae.training import (
    Earlier,
    Learner,
    Preparation,
    TrainingSet,
    build_module,
    prepare_training,
)
from tadvae.vocabulary import Vocabulary

CHECKPOINTS = "checkpoints"
PLACEMENT_GROUP = "placement_group"
"""Key of a report: where the workers are, for whoever must clear away after them."""


def train(
    store_path: str,
    out: str,
    config: ExperimentConfig | None,
    *,
    workers: int | tuple[int, int] = 1,
    gpu: bool = False,
    resume: bool = False,
    callbacks: Sequence[ray.train.UserCallback] = (),
    progress: bool = True,
) -> Location:
    """Train one model on a whole store; returns the run's folder.

    The same call again goes on with a run that was interrupted, and returns at once from one that is done.

    Parameters
    ----------
    config
        None to resume: a run goes on with the config that it began with.
    workers
        How many, or the fewest and the most: the run then takes what the cluster has, grows with it, and goes
        on with fewer where nodes are lost.
    callbacks
        Called on Ray Train's controller, for whoever wants to follow the run's reports.
    progress
        Show the steps on standard error.

    Raises
    ------
    UserError
        For bad input, and where workers fail more often than the run survives.
    """
    store_path, out = absolute(store_path), absolute(out)  # workers run in other folders
    run = Location.of(out)
    store = Store.open(store_path)
    if not resume:
        config = (config or ExperimentConfig()).located()
        resume = _is_begun(run, store, config)
    if resume:
        config = _config_to_resume(run, store)
        if (run / "model" / WEIGHTS).exists():
            print(f"{run}: this run is finished, nothing is left to do", flush=True)
            return run
    config = config or ExperimentConfig()
    if progress:
        check_trackers(run, config)
    # workers of a range may take every CPU: then their readers ask for none
    reader_cpus = 0 if isinstance(workers, tuple) else 1
    fewest = workers[0] if isinstance(workers, tuple) else workers
    with ray_session(min_cpus=fewest + reader_cpus, gpus=fewest if gpu else 0):
        if not resume:
            _begin(run, store, store_path, config, workers, gpu)
        trainer = ray.train.torch.TorchTrainer(
            train_worker,
            train_loop_config={"run": out, "store": store_path, "reader_cpus": reader_cpus},
            # a new node waits as long for the run to take it in: half of Ray's default, as looking is cheap
            scaling_config=ray.train.ScalingConfig(
                num_workers=workers, use_gpu=gpu, elastic_resize_monitor_interval_s=30
            ),
            run_config=ray.train.RunConfig(
                name=CHECKPOINTS,
                storage_path=run.path,
                storage_filesystem=run.filesystem,
                logging_config=ray.train.LoggingConfig("WARNING"),
                failure_config=ray.train.FailureConfig(max_failures=config.train.max_failures),
                checkpoint_config=_what_to_keep(config),
                callbacks=list(callbacks),
            ),
        )
        n_bags = json.loads((run / "run.json").read_text())["bags"]
        called = time.time()
        with StepLog(run, n_bags, config.train.epochs, trackers(run, config)) if progress else nullcontext():
            try:
                result = trainer.fit()
            except TrainingFailedError as error:
                raise (_user_error_in(error) or error) from None
    if result.checkpoint is None:
        raise UserError(f"{run}: the run ended without a checkpoint; see the messages above.")
    checkpoint = result.checkpoint
    if config.validation.patience is not None:
        patience = Patience(config.validation)
        validated = [(c, metrics) for c, metrics in result.best_checkpoints or [] if patience.key in metrics]
        for _, metrics in validated:
            patience.add(metrics)
        checkpoint = validated[int(np.argmax(patience.scores))][0]
    with checkpoint.as_directory() as folder:
        averaged_weights = Path(folder) / AVERAGE
        weights = averaged_weights if averaged_weights.exists() else Path(folder) / WEIGHTS
        (run / "model" / WEIGHTS).write_bytes(weights.read_bytes())
    if progress and (spent := phases(run, called)) is not None:
        print(spent, flush=True)
    return run


def train_worker(settings: dict[str, Any]) -> None:
    """What every worker runs: the whole of training, top to bottom."""
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
        reads = stream_reads(data.reader, windows, config.stream, settings["reader_cpus"])
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


def _begin(
    run: Location,
    store: Store,
    store_path: str,
    config: ExperimentConfig,
    workers: int | tuple[int, int],
    gpu: bool,
) -> None:
    """Check everything, then write the run's folder."""
    prepared = prepare_training(store, config, ray_map)
    if set(prepared.groups["part"]) <= {TRAIN, VALIDATION} and config.split.kind != "none":
        print(
            f"{run}: split.kind={config.split.kind} holds nothing out of this store, so nothing can be "
            "compared later; --set split.kind=single holds out targets.",
            file=sys.stderr,
            flush=True,
        )
    write_run_start(run, store, store_path, config, prepared, workers, gpu)


def write_run_start(
    run: Location,
    store: Store,
    store_path: str,
    config: ExperimentConfig,
    prepared: Preparation,
    workers: int | tuple[int, int],
    gpu: bool,
) -> None:
    """Write a run's folder as it is before its first step: all but weights and log."""
    vocabulary = prepared.vocabulary
    bags = training_bags(store, prepared.groups, config.split, config.stream.control_bags)
    most = workers[1] if isinstance(workers, tuple) else workers
    _, repeated = rank_bags(bags, config.seed, 0, 0, most)

    run.make_folder()
    (run / "model").make_folder()
    (run / "log").make_folder()
    vocabulary.save(run / "model")
    write_controls(run, prepared.controls)
    if prepared.effects is not None:
        save_effects(prepared.effects, run / "model")
    write_card(run / "model", vocabulary, config)
    for folder in (run, run / "model"):
        (folder / "config.yaml").write_text(config.to_yaml())
    buffer = io.BytesIO()
    prepared.groups.to_parquet(buffer, index=False)
    (run / "split.parquet").write_bytes(buffer.getvalue())
    about = {
        "tadvae_version": __version__,
        "store": store_path,
        "vocabulary_hash": vocabulary.hash,
        "workers": workers if isinstance(workers, int) else "{}:{}".format(*workers),
        "gpu": gpu,
        "bags": len(bags),
        "steps_per_epoch": steps_per_epoch(len(bags), config.stream, most),
        "bags_repeated_per_epoch": repeated,
        "pathways": str(vocabulary.membership.coverage),
    }
    (run / "run.json").write_text(json.dumps(about, indent=1))


def _what_to_keep(config: ExperimentConfig) -> ray.train.CheckpointConfig:
    """The last checkpoints; where the best validation counts, the best ones."""
    if config.validation.patience is None:
        return ray.train.CheckpointConfig(num_to_keep=config.train.keep_checkpoints)
    return ray.train.CheckpointConfig(
        num_to_keep=config.train.keep_checkpoints,
        checkpoint_score_attribute=Patience(config.validation).key,
        checkpoint_score_order="max" if HIGHER_IS_BETTER[config.validation.metric] else "min",
    )


def _is_begun(run: Location, store: Store, config: ExperimentConfig) -> bool:
    """Whether the folder holds this very run; a folder with anything else is a UserError."""
    names = set(run.names())
    if not names:
        return False
    if "run.json" in names:
        about = json.loads((run / "run.json").read_text())
        same = (run / "config.yaml").read_text() == config.to_yaml()
        if same and about["vocabulary_hash"] == store.manifest.vocabulary_hash:
            return True
    elif names <= {"model", "log", "config.yaml", "split.parquet", CONTROLS}:
        return False  # it was interrupted before it had begun
    raise UserError(
        f"{run}: already holds a run of other settings, or other files; name another folder with --out, or "
        "go on with that run by --resume."
    )


def _config_to_resume(run: Location, store: Store) -> ExperimentConfig:
    place = run / "config.yaml"
    if not place.exists() or not (run / "run.json").exists():
        raise UserError(f"{run}: no run to resume (it has no config.yaml); start one without --resume.")
    began = json.loads((run / "run.json").read_text())["vocabulary_hash"]
    if began != store.manifest.vocabulary_hash:
        raise UserError(
            f"{run}: this run began with a store of another gene vocabulary ({began}, this one has "
            f"{store.manifest.vocabulary_hash}); resume with the store it began with."
        )
    return ExperimentConfig.load_text(place.read_text(), str(place))


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


def _user_error_in(error: BaseException) -> UserError | None:
    """The sentence of a worker's UserError; Ray Train hands over only its text."""
    _, marker, sentence = str(error).rpartition("tadvae.errors.UserError: ")
    return UserError(sentence.splitlines()[0]) if marker else None


if __name__ == "__main__":  # `python -m pipelines.train` in a Ray job is `tadvae train`
    from pipelines.cli import main

    main(["train", *sys.argv[1:]])
