"""All settings of a sweep: what ``tadvae tune run --config`` reads, and saves with the sweep."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from tadvae.base.config import Config
from tadvae.evaluation.metrics import HIGHER_IS_BETTER
from tadvae.settings.experiment import ExperimentConfig
from tune.space import Space

DEFAULT_SPACE = Path(__file__).parent / "configs" / "space.yaml"
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

    trials: int = Field(20, ge=1)
    """Number of trials."""
    max_concurrent: int | None = Field(None, ge=1)
    """Largest number of trials at the same time; None: as many as the CPUs allow."""
    workers: int = Field(1, ge=1)
    """Workers per trial; one trains in the trial's own process, several by Ray Train."""
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
    scheduler: HalvingConfig = HalvingConfig()
    """When trials stop early."""
    experiment: ExperimentConfig = ExperimentConfig()
    """Settings that all trials share."""

    @model_validator(mode="after")
    def _validates(self) -> "SweepConfig":
        if self.experiment.validation.every is None:
            raise ValueError("a sweep needs validation: set experiment.validation.every, for example to 1")
        if self.scheduler.grace_epochs >= self.experiment.train.epochs:
            raise ValueError(
                f"scheduler.grace_epochs {self.scheduler.grace_epochs} is not below experiment.train.epochs "
                f"{self.experiment.train.epochs}"
            )
        return self

    @property
    def mode(self) -> Literal["max", "min"]:
        """``max`` if larger values of the metric are better, else ``min``."""
        return "max" if HIGHER_IS_BETTER[self.metric.removeprefix("val_")] else "min"
