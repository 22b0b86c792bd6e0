"""One run's whole configuration: what ``tadvae train --config`` reads and saves, resolved."""

from typing import Literal, Self

from pydantic import Field

from tadvae.base.config import Config
from tadvae.base.filesystem import absolute
from tadvae.cells.normalize import PreprocessConfig
from tadvae.data.gene_selection import ALL, PROTEIN_CODING
from tadvae.data.plan import StreamConfig
from tadvae.data.splits import SplitConfig, ValidationConfig
from tadvae.effects.model import EffectsConfig
from tadvae.nn.losses import LossConfig
from tadvae.nn.network import ModelConfig
from tadvae.pathways.membership import MIN_MEASURED


class PathwaysConfig(Config):
    """Where pathways come from."""

    file: str | None = None
    """A GMT file, a two-column table, or Parquet of ``tadvae pathways``; None: the packaged GO terms, for
    each dataset the most specific that it can see."""
    units: int | None = Field(None, ge=1)
    """So many hidden units that see every gene, in place of pathways (D-VAE)."""
    min_measured: int = Field(MIN_MEASURED, ge=1)
    """Measured genes that make a pathway available in a dataset."""


class TrainConfig(Config):
    """Optimisation and checkpoints."""

    epochs: int = Field(50, ge=1)
    learning_rate: float = Field(3e-3, gt=0)
    weight_average: float | None = Field(0.98, gt=0, lt=1)
    """A run ends with the moving average of its weights at this decay a step; None: with the last weights."""
    clip_norm: float | None = Field(1.0, gt=0)
    """Largest norm of the gradient; None: no clipping."""
    checkpoint_every: int | None = Field(None, ge=1)
    """Steps between checkpoints; None: at the end of every epoch."""
    keep_checkpoints: int = Field(2, ge=1)
    compile: bool = False
    """Compile the network by torch.compile; where that fails, the run goes on without and says so."""
    bf16: bool = False
    """Matrix products in bfloat16 (autocast), for GPUs that have it; the loss stays in single precision."""
    max_failures: int = Field(3, ge=0)
    """Failures of workers that a run survives, each time from its last checkpoint."""
    log_bags: bool = False
    """Also log which bags every worker saw, step by step."""
    trackers: list[Literal["tensorboard", "mlflow", "wandb"]] = ["tensorboard"]
    """Tools that show the steps beside the run's own log; mlflow and wandb are extras of the installation."""


class ExperimentConfig(Config):
    """All settings of a run."""

    removed = ("stream.decode",)

    seed: int = 0
    preprocess: PreprocessConfig = PreprocessConfig()
    pathways: PathwaysConfig = PathwaysConfig()
    split: SplitConfig = SplitConfig()
    validation: ValidationConfig = ValidationConfig()
    stream: StreamConfig = StreamConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    effects: EffectsConfig = EffectsConfig()
    train: TrainConfig = TrainConfig()

    def located(self) -> Self:
        """The same with absolute paths of its files, for processes that run in other folders."""

        def found(place: str | None) -> str | None:
            return None if place is None else absolute(place)

        preprocess, pathways, pathway = self.preprocess, self.pathways, self.model.pathway
        if preprocess.genes not in (ALL, PROTEIN_CODING):
            preprocess = preprocess.model_copy(update={"genes": absolute(preprocess.genes)})
        pathways = pathways.model_copy(update={"file": found(pathways.file)})
        vectors = {name: found(getattr(pathway, name)) for name in ("gene_vectors", "pathway_vectors")}
        model = self.model.model_copy(update={"pathway": pathway.model_copy(update=vectors)})
        return self.model_copy(update={"preprocess": preprocess, "pathways": pathways, "model": model})
