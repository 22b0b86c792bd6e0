"""All settings of a sweep: what ``tadvae tune run --config`` reads, and saves with the sweep."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from tadvae.base.config import Config
from tadvae.evaluation.metrics import HIGHER_IS_BETTER
from tadvae.settings.experiment import ExperimentConfig
from tune.space import Space, Values, covering

CONFIGS = Path(__file__).parent / "configs"
DEFAULT_SPACE = CONFIGS / "space.yaml"
PAPER = CONFIGS / "paper.yaml"
"""The paper's question: which masking, with which embedding, with or without an encoder."""
Metric = Literal["val_pearson_delta", "val_l2", "val_rmse", "val_cosine_logfc"]


class HalvingConfig(Config):
    """Asynchronous successive halving (Li et al. 2020): trials with worse results stop early."""

    grace_epochs: int = Field(3, ge=1)
    """Epochs that every trial trains before it can be stopped."""
    reduction_factor: float = Field(3.0, gt=1)
    """Of the trials that reach a rung (an epoch of comparison), one in this number continues; the next rung
    is later by the same factor."""


class SweepConfig(Space):
    """All settings of a sweep."""

    search: Literal["adaptive", "grid"] = "adaptive"
    """How the values of a trial are chosen.

    - ``adaptive``: by Optuna's tree-structured Parzen estimator, from the trials before; use it to find good
      settings.
    - ``grid``: every combination of the choices, once; use it to compare settings.
    """
    trials: int = Field(20, ge=1)
    """Number of trials of an adaptive search; a grid has one per combination."""
    first: list[str] = []
    """Parameters that an adaptive search asks about first: its first trials have every pair of their values,
    and the settings of ``experiment`` for all others; then the search chooses."""
    max_concurrent: int | None = Field(None, ge=1)
    """Largest number of trials at the same time; None: as many as the CPUs allow."""
    workers: int = Field(1, ge=1)
    """Workers per trial; one trains in the trial's own process, several by Ray Train."""
    gpus: float = Field(0.0, ge=0, le=1)
    """GPUs per worker: 0 trains on CPUs, 1 gives each worker a GPU of its own; of a fraction, such as 0.25,
    several trials of one worker share a GPU and its memory."""
    seed: int = 0
    """Seed of the search; the seed of the trials is ``experiment.seed``."""
    metric: Metric = "val_pearson_delta"
    """Metric that trials are compared by, over perturbations held out for validation.

    - ``val_pearson_delta``: correlation of predicted and observed effects; use it if the direction matters.
    - ``val_l2``: Euclidean distance of mean profiles; use it if the size of effects matters too.
    - ``val_rmse``: ``val_l2`` per gene; use it to compare panels of different sizes.
    - ``val_cosine_logfc``: cosine similarity of log fold changes; use it to compare with publications that
      report it.
    """
    scheduler: HalvingConfig | None = HalvingConfig()
    """When trials stop early; None: every trial trains to the end."""
    experiment: ExperimentConfig = ExperimentConfig()
    """Settings that all trials share."""

    @model_validator(mode="after")
    def _validates(self) -> "SweepConfig":
        if self.experiment.validation.every is None:
            raise ValueError("a sweep needs validation: set experiment.validation.every, for example to 1")
        if self.scheduler is not None and self.scheduler.grace_epochs >= self.experiment.train.epochs:
            raise ValueError(
                f"scheduler.grace_epochs {self.scheduler.grace_epochs} is not below experiment.train.epochs "
                f"{self.experiment.train.epochs}"
            )
        return self

    @model_validator(mode="after")
    def _can_be_listed(self) -> "SweepConfig":
        for key in self.first:
            if key not in self.parameters:
                raise ValueError(f"'first' names '{key}', which is not among the parameters")
        for key in self.parameters if self.search == "grid" else self.first:
            if self.parameters[key].choice is None:
                raise ValueError(f"'{key}' is a range; a grid and 'first' need a choice")
        return self

    @model_validator(mode="after")
    def _workers_have_gpus(self) -> "SweepConfig":
        if self.workers > 1 and 0 < self.gpus < 1:
            raise ValueError(
                f"the workers of a trial cannot share a GPU (gpus {self.gpus:g}, workers {self.workers}); "
                "set gpus to 1, or workers to 1"
            )
        return self

    @property
    def n_trials(self) -> int:
        """Number of trials."""
        return len(self.points()) if self.search == "grid" else self.trials

    def points(self) -> list[Values]:
        """Values of the trials that are known before the search, by the number of the trial."""
        if self.search == "grid":
            return self.grid(self.parameters)
        if not self.first:
            return []
        points = [self.completed(point, self.experiment) for point in covering(self.grid(self.first))]
        return points[: self.trials]

    @property
    def mode(self) -> Literal["max", "min"]:
        """``max`` if larger values of the metric are better, else ``min``."""
        return "max" if HIGHER_IS_BETTER[self.metric.removeprefix("val_")] else "min"
