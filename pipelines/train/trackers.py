"""Where the steps of a run are shown besides its own log: one class for each tool.

Trackers run in the driver and are handed the records of :class:`pipelines.train.records.StepRecords`.
"""

import hashlib
import importlib.util
import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
from tensorboardX import SummaryWriter

from tadvae.base.errors import UserError
from tadvae.base.terminal import print_text
from tadvae.model.run_folder import RunFolder
from tadvae.settings.experiment import ExperimentConfig

NOT_PLOTTED = {"step", "time", "epoch", "seconds", "wait"}
PROJECT = "tadvae"
"""Where MLflow and W&B put runs, unless their own variables name another place."""


class Tracker(Protocol):
    """Shows a run's steps somewhere."""

    def log(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Take some steps, in order."""

    def close(self) -> None:
        """Take no more."""


class TensorBoard:
    """Event files in ``RUN/tensorboard``, one a driver.

    They are made in a temporary folder and copied as they grow: an object store cannot append to a file, and
    where the run's disk is full the writer's thread would die and everybody wait for it. What cannot be
    copied is left out; the run's own log has it.
    """

    def __init__(self, run: RunFolder, config: ExperimentConfig) -> None:
        self._run, self._out = run.place, run.tracker_folder("tensorboard")
        self._local = tempfile.TemporaryDirectory()
        self._writer = SummaryWriter(self._local.name, flush_secs=10)

    def log(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Write one scalar for each quantity and step."""
        for record in records:
            for name, value in quantities(record).items():
                self._writer.add_scalar(name, value, record["step"], walltime=record["time"])
        self._copy()

    def close(self) -> None:
        """End the file."""
        self._writer.close()
        self._copy()
        self._local.cleanup()

    def _copy(self) -> None:
        if self._writer.file_writer is not None:
            self._writer.flush()
        with suppress(UserError, OSError):
            if not self._run.exists():  # it was removed meanwhile
                return
            self._out.make_folder()
            for file in Path(self._local.name).iterdir():
                (self._out / file.name).write_bytes(file.read_bytes())


class MLflow:
    """A run of MLflow at ``MLFLOW_TRACKING_URI``, else in ``RUN/mlflow.db``; a later driver goes on with it.

    Steps that the server does not take are left out with a message; the run's own log has them.
    """

    BATCH = 1000
    """Metrics of one request, and a tenth as many parameters: MLflow's own bounds."""

    def __init__(self, run: RunFolder, config: ExperimentConfig) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param
        from mlflow.exceptions import MlflowException

        self._metric, self._failure = Metric, MlflowException
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        settings = pd.json_normalize(config.model_dump(mode="json")).iloc[0]
        params = [Param(key, str(value)) for key, value in settings.items()]
        try:
            self._client = MlflowClient(
                os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{run.place.path}/mlflow.db"
            )
            experiment = self._client.get_experiment_by_name(name)
            place = experiment.experiment_id if experiment else self._client.create_experiment(name)
            tags = {"tadvae.run": _digest(run)}
            found = self._client.search_runs([place], f"tags.`tadvae.run` = '{tags['tadvae.run']}'")
            self._run = (
                found[0] if found else self._client.create_run(place, run_name=run.place.name, tags=tags)
            ).info
            self._client.update_run(self._run.run_id, status="RUNNING")
            for start in range(0, len(params), self.BATCH // 10):
                self._client.log_batch(self._run.run_id, params=params[start : start + self.BATCH // 10])
        except MlflowException as error:
            raise UserError(_sentence("MLflow", error, "correct MLFLOW_TRACKING_URI")) from None

    def log(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Send one metric for each quantity and step."""
        metrics = [
            self._metric(name, float(value), round(1000 * record["time"]), record["step"])
            for record in records
            for name, value in quantities(record).items()
        ]
        try:
            for start in range(0, len(metrics), self.BATCH):
                self._client.log_batch(self._run.run_id, metrics=metrics[start : start + self.BATCH])
        except self._failure as error:
            print_text(_sentence("MLflow", error, "these steps are in the run's own log"))

    def close(self) -> None:
        """Say that this driver has ended."""
        with suppress(self._failure):
            self._client.set_terminated(self._run.run_id)


class WandB:
    """A run of Weights & Biases; a later driver goes on with it.

    Its files are in ``WANDB_DIR``, else in ``RUN/wandb``; ``WANDB_MODE=offline`` leaves it at that.
    """

    def __init__(self, run: RunFolder, config: ExperimentConfig) -> None:
        import wandb

        self._local = tempfile.TemporaryDirectory()
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT),
                id=_digest(run),
                name=run.place.name,
                config=config.model_dump(mode="json"),
                dir=os.environ.get("WANDB_DIR")
                or (run.place.path if run.place.is_local else self._local.name),
                resume=None if _offline() else "allow",
                settings=wandb.Settings(console="off", silent=True),  # standard error has the progress
            )
        except wandb.Error as error:
            self._local.cleanup()
            fix = "run `wandb login`, or set WANDB_MODE=offline"
            raise UserError(_sentence("W&B", error, fix)) from None
        # its own count of steps only grows, but a restart makes some steps again
        self._run.define_metric("train/*", step_metric="step")

    def log(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Hand every step to W&B's own process, which sends or keeps it."""
        for record in records:
            self._run.log({"step": record["step"], **quantities(record)})

    def close(self) -> None:
        """Wait until everything is sent or on disk."""
        self._run.finish()
        self._local.cleanup()


TRACKERS: dict[str, type[TensorBoard | MLflow | WandB]] = {
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "wandb": WandB,
}


def check_trackers(run: RunFolder, config: ExperimentConfig) -> None:
    """See that the trackers of the config can be used.

    Raises
    ------
    UserError
        If a package is missing, or a tracker's files would have to lie at a URL.
    """
    places = {"mlflow": os.environ.get("MLFLOW_TRACKING_URI")}
    if _offline():
        places["wandb"] = os.environ.get("WANDB_DIR")
    for name in config.train.trackers:
        if name != "tensorboard" and importlib.util.find_spec(name) is None:
            raise UserError(
                f"train.trackers: {name} is not installed; `pip install 'tadvae[{name}]'`, or leave it out."
            )
        if not run.place.is_local and places.get(name, "there") is None:
            variable = {"mlflow": "MLFLOW_TRACKING_URI", "wandb": "WANDB_DIR"}[name]
            raise UserError(
                f"{run}: {name} cannot keep its files at a URL; set {variable}, or leave {name} out of "
                "train.trackers."
            )


def trackers(run: RunFolder, config: ExperimentConfig) -> list[Tracker]:
    """Those that the config asks for."""
    return [TRACKERS[name](run, config) for name in dict.fromkeys(config.train.trackers)]


def quantities(record: Mapping[str, Any]) -> dict[str, float]:
    """What is plotted of a step, by name."""
    seconds = max(record["seconds"], 1e-9)
    values = {name: value for name, value in record.items() if name not in NOT_PLOTTED}
    values |= {"cells_per_second": record["cells"] / seconds, "wait_share": record["wait"] / seconds}
    return {f"train/{name}": value for name, value in values.items()}


def _offline() -> bool:
    return os.environ.get("WANDB_MODE") == "offline"


def _digest(run: RunFolder) -> str:
    """An id of the run's place that any tool takes."""
    return hashlib.sha256(str(run).encode()).hexdigest()[:16]


def _sentence(tool: str, error: Exception, fix: str) -> str:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0].partition(". ")[0].rstrip(".")
    return f"{tool}: {reason}; {fix}."
