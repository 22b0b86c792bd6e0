"""``tadvae train``: Ray Train runs the training loop on every worker, Ray Data feeds it.

A run is a folder::

    RUN/config.yaml run.json split.parquet   what was asked for, resolved
    RUN/model/                               vocabulary, model card, and at the end the weights
    RUN/log/steps-*.jsonl                    one line a step
    RUN/log/restart-*.json                   what a restart did again, and which bags it repeats
    RUN/tensorboard/                         the same log for TensorBoard; other trackers may add their own
    RUN/checkpoints/                         Ray Train's storage
"""

import io
import json
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import ray
import ray.train
import ray.train.torch
from ray.train.v2.api.exceptions import TrainingFailedError

from pipelines.cluster.connection import ray_map, ray_session
from pipelines.train.phases import phases
from pipelines.train.step_log import StepLog
from pipelines.train.trackers import check_trackers, trackers
from pipelines.train.worker import CHECKPOINTS, train_worker
from tadvae import __version__
from tadvae.base.errors import UserError
from tadvae.base.filesystem import Location, absolute
from tadvae.data.plan import rank_bags, steps_per_epoch
from tadvae.data.reader import training_bags
from tadvae.data.splits import TRAIN, VALIDATION
from tadvae.effects.file import save_effects
from tadvae.evaluation.metrics import HIGHER_IS_BETTER
from tadvae.model.card import write_card
from tadvae.model.controls import CONTROLS, write_controls
from tadvae.model.weights import WEIGHTS
from tadvae.settings.experiment import ExperimentConfig
from tadvae.store.reader import Store
from tadvae.training.checkpoint import AVERAGE
from tadvae.training.prepare import Preparation, prepare_training
from tadvae.training.validation import Patience


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
    fewest = workers[0] if isinstance(workers, tuple) else workers
    with ray_session(min_cpus=fewest, gpus=fewest if gpu else 0):
        if not resume:
            _begin(run, store, store_path, config, workers, gpu)
        trainer = ray.train.torch.TorchTrainer(
            train_worker,
            train_loop_config={"run": out, "store": store_path},
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


def _user_error_in(error: BaseException) -> UserError | None:
    """The sentence of a worker's UserError; Ray Train hands over only its text."""
    _, marker, sentence = str(error).rpartition("tadvae.base.errors.UserError: ")
    return UserError(sentence.splitlines()[0]) if marker else None
