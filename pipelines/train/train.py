"""``tadvae train``: Ray Train runs the training loop on every worker, Ray Data feeds it.

The files of a run: :mod:`tadvae.model.run_folder`.
"""

import re
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import ray.train.torch
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError

from pipelines.cluster.connection import ray_map, ray_session
from pipelines.cluster.ray_log import say
from pipelines.train.checkpoints import require_own_checkpoints
from pipelines.train.phases import phases
from pipelines.train.step_log import StepLog
from pipelines.train.trackers import check_trackers, trackers
from pipelines.train.worker import train_worker
from tadvae.base.errors import StorageError, UserError
from tadvae.base.filesystem import absolute
from tadvae.data.reader import verify_shards
from tadvae.data.splits import TRAIN, VALIDATION
from tadvae.evaluation.metrics import HIGHER_IS_BETTER
from tadvae.model.run_folder import CHECKPOINTS, RunFolder
from tadvae.model.weights import WEIGHTS
from tadvae.settings.experiment import ExperimentConfig
from tadvae.store.reader import Store
from tadvae.training.begin_run import begin_run
from tadvae.training.checkpoint import AVERAGE
from tadvae.training.prepare import prepare_training
from tadvae.training.validation import Patience

_SENTENCE = re.compile(r"tadvae\.base\.errors\.(?:UserError|StorageError): (.+)")


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
    verify: bool = True,
) -> RunFolder:
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
    verify
        Compare the store's shards with their checksums first.

    Raises
    ------
    UserError
        For bad input, and where workers fail more often than the run survives.
    """
    store_path, out = absolute(store_path), absolute(out)  # workers run in other folders
    run = RunFolder(out)
    store = Store.open(store_path)
    vocabulary_hash = store.manifest.vocabulary_hash
    if not resume:
        config = (config or ExperimentConfig()).located()
        resume = run.is_begun_with(config, vocabulary_hash)
    if resume:
        config = run.config_to_resume(vocabulary_hash)
        if run.is_finished:
            print(f"{run}: this run is finished, nothing is left to do", flush=True)
            return run
        require_own_checkpoints(run)
    config = config or ExperimentConfig()
    if progress:
        check_trackers(run, config)
    fewest = workers[0] if isinstance(workers, tuple) else workers
    with ray_session(min_cpus=fewest, gpus=fewest if gpu else 0):
        if verify:
            verify_shards(store, store.bags, ray_map)
        if not resume:
            _begin(run, store, store_path, config, workers, gpu)
        trainer = _trainer(run, {"run": out, "store": store_path}, config, workers, gpu, callbacks)
        n_bags = run.about()["bags"]
        if progress:
            say(f"starting {fewest} training worker{'' if fewest == 1 else 's'}…")
        called = time.time()
        with StepLog(run, n_bags, config.train.epochs, trackers(run, config)) if progress else nullcontext():
            try:
                result = trainer.fit()
            except TrainingFailedError as error:
                raise (_user_error_in(error) or error) from None
        if result.checkpoint is None:
            raise UserError(f"{run}: the run ended without a checkpoint; look at Ray's own messages.")
    _keep_weights(run, config, result)
    if progress and (spent := phases(run, called)) is not None:
        print(spent, flush=True)
    return run


def _trainer(
    run: RunFolder,
    places: dict[str, str],
    config: ExperimentConfig,
    workers: int | tuple[int, int],
    gpu: bool,
    callbacks: Sequence[ray.train.UserCallback],
) -> ray.train.torch.TorchTrainer:
    """The Ray Train run, whose checkpoints are kept in the run's folder."""
    return ray.train.torch.TorchTrainer(
        train_worker,
        train_loop_config=places,
        # a new node waits as long for the run to take it in: half of Ray's default, as looking is cheap
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers, use_gpu=gpu, elastic_resize_monitor_interval_s=30
        ),
        run_config=ray.train.RunConfig(
            name=CHECKPOINTS,
            storage_path=run.place.path,
            storage_filesystem=run.place.filesystem,
            logging_config=ray.train.LoggingConfig("WARNING"),
            failure_config=ray.train.FailureConfig(max_failures=config.train.max_failures),
            checkpoint_config=_what_to_keep(config),
            callbacks=[StopAtUserError(), *callbacks],
        ),
    )


def _keep_weights(run: RunFolder, config: ExperimentConfig, result: ray.train.Result) -> None:
    """Copy the final weights into the run's model folder: of the best validation where that decides."""
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
        run.finish(weights.read_bytes())


def _begin(
    run: RunFolder,
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
    begin_run(run, store, store_path, config, prepared, workers, gpu)


def _what_to_keep(config: ExperimentConfig) -> ray.train.CheckpointConfig:
    """The last checkpoints; where the best validation counts, the best ones."""
    if config.validation.patience is None:
        return ray.train.CheckpointConfig(num_to_keep=config.train.keep_checkpoints)
    return ray.train.CheckpointConfig(
        num_to_keep=config.train.keep_checkpoints,
        checkpoint_score_attribute=Patience(config.validation).key,
        checkpoint_score_order="max" if HIGHER_IS_BETTER[config.validation.metric] else "min",
    )


class StopAtUserError(ray.train.UserCallback):
    """Ends a run at a worker's UserError: a file that is damaged stays so, however often workers restart.

    Storage that does not answer is a :class:`~tadvae.base.errors.StorageError`, after which they do restart.
    """

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Called on Ray Train's controller, where an error ends the run."""
        for error in worker_exceptions.values():
            if isinstance(error, UserError) and not isinstance(error, StorageError):
                raise error


def _user_error_in(error: TrainingFailedError) -> UserError | None:
    """The UserError that ended a run: of the controller, or of a worker, of which there is only the text."""
    if isinstance(error, ControllerError) and isinstance(error.controller_failure, UserError):
        return error.controller_failure
    sentences = _SENTENCE.findall(str(error))
    return UserError(sentences[-1]) if sentences else None
