"""The converter's input: which files, which columns, what they mean (``SPEC.yaml``)."""

import re
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from tadvae.base.config import Config, read_yaml
from tadvae.base.errors import UserError

MODALITY_SIGN = {
    "crispra": 1,
    "overexpression": 1,
    "crispri": -1,
    "crispr": -1,
    "crisprko": -1,
    "knockout": -1,
    "knockdown": -1,
    "cas13d": -1,
    "rnai": -1,
}
"""Direction in which a modality moves its target's activity; anything else (drug, ligand, …) is 0."""


def modality_sign(modality: str) -> int:
    """+1 for activation, -1 for loss of function, 0 where the name does not say."""
    return MODALITY_SIGN.get(re.sub(r"[^a-z0-9]", "", modality.lower()), 0)


class ColumnSpec(Config):
    """A column of ``obs``."""

    column: str


class ContextSpec(Config):
    """The biological context (cell line, cell type): a column of ``obs``, or one value for all cells."""

    column: str | None = None
    value: str | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.column is None) == (self.value is None):
            raise ValueError("give either 'column' or 'value'")
        return self


class PerturbationSpec(Config):
    """How ``obs`` names the perturbation of a cell."""

    column: str
    control: str | list[str]
    """The label, or labels, of control cells; as one target of several it is ignored (``KLF1+ctrl``)."""
    separator: str | None = None
    """Between the targets of a combination; None: each label is one target."""
    remove: str | None = None
    """A regular expression whose matches are cut out of every target, such as a guide's ``_pDS.*$``."""
    rename: dict[str, str] = {}
    """Other names for targets, for example ``{stimulated: IFNB1}``."""
    exclude: list[str] = []
    """Labels of cells that are left out, for example those whose guide was not read."""
    missing: Literal["error", "drop"] = "error"
    """What to do with cells that have no label."""

    @field_validator("remove")
    @classmethod
    def _is_regular(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"not a regular expression ({error})") from None
        return pattern

    @property
    def controls(self) -> set[str]:
        """The control labels as a set."""
        return {self.control} if isinstance(self.control, str) else set(self.control)


class CountsSpec(Config):
    """Which matrix holds the values."""

    layer: str | None = None
    """A layer's name; None: ``X``."""


class DatasetGenesSpec(Config):
    """Which columns of ``var`` describe the genes."""

    column: str | None = None
    """Identifiers (symbols or Ensembl ids); None: the index of ``var``."""
    symbols: str | None = None
    """Symbols beside Ensembl ids; None: a column called symbol, gene_symbols or gene_name, if any."""
    length: str | None = None
    """Transcript length in bases, for TPM."""


class DatasetSpec(Config):
    """One ``.h5ad`` file and what its columns mean."""

    name: str
    path: str
    perturbation: PerturbationSpec | None = None
    """None: an atlas without perturbations; all its cells are controls."""
    context: ContextSpec = ContextSpec(value="unspecified")
    modality: str | dict[str, str] = "unspecified"
    """One for the dataset, or by target: ``{default: CRISPRko, TCR: stimulation}``."""
    batch: ColumnSpec | None = None
    counts: CountsSpec = CountsSpec()
    total_counts: str | None = None
    """Column with each cell's true library size; None: the sum over the measured genes."""
    kind: Literal["cells", "profiles"] = "cells"
    """``profiles``: mean profiles, one row a condition."""
    values: Literal["counts", "log1p"] = "counts"
    """``log1p``: already normalised and log-transformed (then nothing is normalised again)."""
    genes: DatasetGenesSpec = DatasetGenesSpec()

    @field_validator("name")
    @classmethod
    def _fit_for_a_folder(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
            raise ValueError("expected letters, digits, '_', '-' or '.' only")
        return name

    @field_validator("batch", mode="before")
    @classmethod
    def _batch_by_name(cls, value: object) -> object:
        return {"column": value} if isinstance(value, str) else value

    @field_validator("counts", mode="before")
    @classmethod
    def _counts_by_name(cls, value: object) -> object:
        if value == "X":
            return {}
        return {"layer": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _cells_are_counted(self) -> Self:
        if isinstance(self.modality, dict) and "default" not in self.modality:
            raise ValueError("a modality by target needs a 'default'")
        return self

    def modality_of(self, target: str) -> str:
        """The modality by which ``target`` is perturbed."""
        if isinstance(self.modality, str):
            return self.modality
        return self.modality.get(target, self.modality["default"])


class GenesSpec(Config):
    """How gene identifiers are brought together."""

    reference: str = "human"
    """``human`` (packaged), ``none`` (take identifiers as they are), or a table of your own."""
    max_unknown: float = Field(0.5, ge=0, le=1)
    """Refuse a dataset with a larger share of unknown identifiers."""


class LayoutSpec(Config):
    """Physical layout of the store; it never changes what is stored."""

    bag_size: int = Field(64, ge=1)
    """Largest number of cells of one (dataset, context, perturbation) kept together."""
    row_group_rows: int = Field(1024, ge=1)
    shard_rows: int = Field(16384, ge=1)
    """About 25 MB of cells of 1,500 genes; a conversion task holds one shard."""
    chunk_rows: int = Field(8192, ge=1)
    """Cells a conversion task reads at once: its memory, not the result."""
    seed: int = 0
    """Of the shuffle of cells and bags."""


class StoreSpec(Config):
    """The whole of ``SPEC.yaml``."""

    datasets: list[DatasetSpec] = Field(min_length=1)
    genes: GenesSpec = GenesSpec()
    layout: LayoutSpec = LayoutSpec()

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        # Not in case alone: a name is a file's name, and some file systems do not see case.
        names = [dataset.name.lower() for dataset in self.datasets]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"dataset names must differ, but '{repeated[0]}' is repeated; rename one")
        return self


def load_spec(path: str | Path) -> StoreSpec:
    """Read ``SPEC.yaml``; relative paths in it are relative to its folder."""
    spec = StoreSpec.parse(read_yaml(path), str(path))
    folder = Path(path).absolute().parent
    datasets = []
    for dataset in spec.datasets:
        source = folder / Path(dataset.path).expanduser()
        if not source.is_file():
            raise UserError(f"{path}: dataset '{dataset.name}': no file at {source}; mend its 'path'.")
        datasets.append(dataset.model_copy(update={"path": str(source)}))
    genes = spec.genes
    if genes.reference not in ("human", "none"):
        table = folder / Path(genes.reference).expanduser()
        genes = genes.model_copy(update={"reference": str(table)})
    return spec.model_copy(update={"datasets": datasets, "genes": genes})
