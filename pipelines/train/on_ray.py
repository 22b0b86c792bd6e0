"""Ray Train behind ``tadvae train``: its workers, its checkpoints, and the weights that it ends with."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import ray.train
import ray.train.torch
from ray.train.torch import TorchConfig
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError

from pipelines.train.loopback import LoopbackConfig, is_local
from pipelines.train.rank import keep_weights
from pipelines.train.stop import StopAtUserError
from pipelines.train.worker import train_worker
from tadvae.base.errors import UserError, sentence_in
from tadvae.evaluation.metrics import HIGHER_IS_BETTER
from tadvae.model.run_folder import CHECKPOINTS, RunFolder
from tadvae.settings.experiment import ExperimentConfig
from tadvae.training.validation import Patience

SILENT_S = 300
"""Seconds after which ranks that wait for one that says nothing end the run, to start again."""


def train_on_ray(
    run: RunFolder,
    places: dict[str, str],
    workers: int | tuple[int, int],
    gpu: bool,
    callbacks: Sequence[ray.train.UserCallback],
) -> None:
    """Train a run that has begun, from its last checkpoint on, to its final weights.

    Parameters
    ----------
    places
        Path or URL of the ``run`` and of the ``store``, for workers in other folders.
    workers, gpu, callbacks
        See :func:`pipelines.train.train.train`.
    """
    config = run.config()
    trainer = _trainer(run, places, config, workers, gpu, callbacks)
    try:
        result = trainer.fit()
    except TrainingFailedError as error:
        raise (_user_error_in(error) or error) from None
    if result.checkpoint is None:
        raise UserError(f"{run}: the run ended without a checkpoint; look at Ray's own messages.")
    _keep_weights(run, config, result)


class _Trainer(ray.train.torch.TorchTrainer):
    def _register_sigint_handler(self, controller: object) -> None:
        """Leave SIGINT to the command: Ray Train's own handler ends it as if all was done."""

    def _create_default_callbacks(self) -> list[Any]:
        """Without the process that hands out datasets: none is given, every rank reads its own windows."""
        return [
            each for each in super()._create_default_callbacks() if not isinstance(each, DatasetsCallback)
        ]


def _trainer(
    run: RunFolder,
    places: dict[str, str],
    config: ExperimentConfig,
    workers: int | tuple[int, int],
    gpu: bool,
    callbacks: Sequence[ray.train.UserCallback],
) -> ray.train.torch.TorchTrainer:
    """The Ray Train run, whose checkpoints are kept in the run's folder."""
    local = is_local()
    if local:  # no cloud takes this machine away, and its watcher is one more process that starts
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    return _Trainer(
        train_worker,
        train_loop_config=places,
        torch_config=(LoopbackConfig if local else TorchConfig)(timeout_s=SILENT_S),
        # a new node waits at most so long until the run takes it in (Ray's default: 60 s); looking is cheap
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers, use_gpu=gpu, elastic_resize_monitor_interval_s=10
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
        keep_weights(run, folder)


def _what_to_keep(config: ExperimentConfig) -> ray.train.CheckpointConfig:
    """The last checkpoints; where the best validation counts, the best ones."""
    if config.validation.patience is None:
        return ray.train.CheckpointConfig(num_to_keep=config.train.keep_checkpoints)
    return ray.train.CheckpointConfig(
        num_to_keep=config.train.keep_checkpoints,
        checkpoint_score_attribute=Patience(config.validation).key,
        checkpoint_score_order="max" if HIGHER_IS_BETTER[config.validation.metric] else "min",
    )


def _user_error_in(error: TrainingFailedError) -> UserError | None:
    """The UserError that ended a run: of the controller, or of a worker, of which there is only the text."""
    if isinstance(error, ControllerError) and isinstance(error.controller_failure, UserError):
        return error.controller_failure
    sentence = sentence_in(str(error))
    return None if sentence is None else UserError(sentence)
