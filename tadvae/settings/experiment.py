"""All settings of a run: what ``tadvae train --config`` reads, and saves with the run."""

from typing import Literal, Self

from pydantic import Field, model_validator

from tadvae.base.config import Config, OptionalFile
from tadvae.cells.normalize import PreprocessConfig
from tadvae.data.plan import StreamConfig
from tadvae.data.splits import SplitConfig, ValidationConfig
from tadvae.effects.model import EffectsConfig
from tadvae.nn.losses import LossConfig
from tadvae.nn.network import ModelConfig
from tadvae.nn.strategies.base import STRATEGIES
from tadvae.pathways.membership import MIN_MEASURED


class PathwaysConfig(Config):
    """The pathways of the model."""

    file: OptionalFile = None
    """A GMT file, a two-column table, or a Parquet file of ``tadvae pathways``; None: the packaged GO terms,
    for each dataset the most specific ones with enough measured genes."""
    units: int | None = Field(None, ge=1)
    """Number of hidden units that see all genes, in place of pathways (D-VAE); None: pathways."""
    min_measured: int = Field(MIN_MEASURED, ge=1)
    """Measured genes that a pathway needs to be available in a dataset."""
    permuted: int | None = Field(None, ge=0)
    """Seed of a random permutation of the measured genes, as a control: pathways keep their sizes and
    overlaps, but not their genes. What a model does as well with it, it does not owe to the pathways. None:
    the genes of the pathways."""

    @model_validator(mode="after")
    def _pathways_to_permute(self) -> Self:
        if self.permuted is not None and self.units is not None:
            raise ValueError("permuted: units that see all genes have no pathways to permute; leave it out")
        return self


class TrainConfig(Config):
    """Optimisation and checkpoints."""

    former: Literal["frozen", "anchored", "free"] = "frozen"
    """What fine-tuning (``origin``) does with the weights of the model that it begins with.

    - ``frozen``: they stay as they are, so the network's predictions for the former screens do too; only
      weights of new genes, targets, datasets and modalities are trained.
    - ``anchored``: they are pulled back to their start with the strength ``anchor``.
    - ``free``: they are trained as all others; use it if the former screens no longer matter.
    """
    anchor: float = Field(1.0, gt=0)
    """Weight of half the squared distance of former weights from their start; only for ``anchored``."""
    epochs: int = Field(50, ge=1)
    """Number of passes over the training cells."""
    learning_rate: float = Field(3e-3, gt=0)
    """Learning rate of Adam."""
    weight_average: float | None = Field(0.98, gt=0, lt=1)
    """Decay per step of the average of the weights, which is the final model; None: the last weights."""
    clip_norm: float | None = Field(1.0, gt=0)
    """Largest norm of the gradient; None: no clipping."""
    checkpoint_every: int | None = Field(None, ge=1)
    """Steps between checkpoints; None: at the end of every epoch."""
    keep_checkpoints: int = Field(2, ge=1)
    """Number of checkpoints to keep, the latest ones."""
    compile: bool = False
    """Compile the network with torch.compile; if that fails, the run continues without it, with a warning."""
    bf16: bool = False
    """Compute matrix products in bfloat16 (autocast), on GPUs that support it; the loss stays in float32."""
    max_failures: int = Field(3, ge=0)
    """Number of worker failures after which a run restarts from its last checkpoint; one more ends it."""
    log_bags: bool = False
    """Whether to log the bags that every worker sees, step by step."""
    trackers: list[Literal["tensorboard", "mlflow", "wandb"]] = ["tensorboard"]
    """Tools that record the training steps, in addition to the run's own log.

    - ``tensorboard``: local files in the run folder; use it on one machine.
    - ``mlflow``: an MLflow server; use it if your group runs one. It is an extra of the installation.
    - ``wandb``: Weights & Biases; use it to share curves online. It is an extra of the installation.
    """


class ExperimentConfig(Config):
    """All settings of a run."""

    removed = ("stream.decode",)

    seed: int = 0
    """Seed of the initial weights, the order of the bags and the noise of training."""
    origin: OptionalFile = None
    """Folder of a run or a model to fine-tune, as of ``tadvae train --from``; None: train from scratch."""
    preprocess: PreprocessConfig = PreprocessConfig()
    """Normalisation and genes."""
    pathways: PathwaysConfig = PathwaysConfig()
    """Source of the pathways."""
    split: SplitConfig = SplitConfig()
    """What is held out for testing."""
    validation: ValidationConfig = ValidationConfig()
    """What is held out for validation, and early stopping."""
    stream: StreamConfig = StreamConfig()
    """Batches and their order."""
    model: ModelConfig = ModelConfig()
    """The network."""
    loss: LossConfig = LossConfig()
    """The training loss."""
    effects: EffectsConfig = EffectsConfig()
    """The regression of mean effects."""
    train: TrainConfig = TrainConfig()
    """Optimisation and checkpoints."""

    @property
    def summary(self) -> str:
        """The model in a few words, for tables and pages: masking, width, heads, factors, training."""
        pathway, encoder = self.model.pathway, self.model.encoder.kind
        parts = [f"{pathway.masking} masking"]
        if self.pathways.units is not None:
            parts = [f"{self.pathways.units} hidden units in place of pathways"]
        if self.pathways.permuted is not None:
            parts.append(f"PERMUTED pathways (seed {self.pathways.permuted})")
        if STRATEGIES[pathway.masking].has_tokens:
            parts.append(f"width {pathway.d_embed}, {pathway.n_heads} heads, encoder {encoder}")
        identity = self.model.latent.kind == "identity"
        parts.append("a factor per pathway" if identity else f"{self.model.causal.n_factors} factors")
        bags, cells = self.stream.bags_per_batch, self.stream.cells_per_bag
        batch = f"{bags} bag{'' if bags == 1 else 's'}" + ("" if cells is None else f" of {cells} cells")
        train = self.train
        parts.append(f"{train.epochs} epochs, {batch} per batch, learning rate {train.learning_rate:g}")
        parts.append(f"share of the regression {self.effects.weight:g}")
        return "; ".join(parts)
