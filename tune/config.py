"""A sweep's whole configuration: what ``tadvae tune run --config`` reads and saves, resolved."""

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
    """Asynchronous successive halving (Li et al. 2020): the worse trials stop early."""

    grace_epochs: int = Field(3, ge=1)
    """Epochs that every trial may train."""
    reduction_factor: float = Field(3.0, gt=1)
    """Of the trials that reach a rung, one in so many goes on; the next rung is so many times farther."""


class SweepConfig(Space):
    """All settings of a sweep."""

    trials: int = Field(20, ge=1)
    max_concurrent: int | None = Field(None, ge=1)
    """Trials at once; None: as many as the CPUs allow."""
    workers: int = Field(1, ge=1)
    """Ray Train workers of each trial."""
    seed: int = 0
    """Of the search; that of the trials is ``experiment.seed``."""
    metric: Metric = "val_pearson_delta"
    """What is best, over perturbations held out for validation."""
    scheduler: HalvingConfig = HalvingConfig()
    experiment: ExperimentConfig = ExperimentConfig()
    """What all trials have in common."""

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
        """Whether more or less of the metric is better."""
        return "max" if HIGHER_IS_BETTER[self.metric.removeprefix("val_")] else "min"
