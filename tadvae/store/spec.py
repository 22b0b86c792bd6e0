"""The input of ``tadvae convert`` (``SPEC.yaml``): the files, and the meaning of their columns."""

import re
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from tadvae.base.config import Config, read_yaml
from tadvae.base.documents import parse_yaml
from tadvae.base.errors import UserError
from tadvae.base.labels import as_text
from tadvae.store.covariates import AMOUNTS, CovariateSpec

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
"""Direction in which a modality changes its target's activity; anything else (drug, ligand, …) is 0."""


Kind = Literal["cells", "profiles", "signatures"]
ValuesAre = Literal["counts", "log1p", "effects"]
"""What a row of a dataset is, and what its values are; see :class:`DatasetSpec`."""
UNSPECIFIED = "unspecified"
"""The modality of a dataset whose spec names none."""


def modality_sign(modality: str) -> int:
    """+1 for activation, -1 for loss of function, 0 if the name is neither."""
    return MODALITY_SIGN.get(re.sub(r"[^a-z0-9]", "", modality.lower()), 0)


_GENETIC = re.compile(
    r"^$|unspecified|crispr|cas\d|knock|rnai|s[ih]rna|s?grna|guide|overexpress|^orf|^gene|edit|mutat|variant|"
    r"deletion|lossoffunction|gainoffunction"
)


def is_genetic(modality: str) -> bool:
    """Whether a modality acts on genes by their names (CRISPRi, siRNA, base editing, or not specified).

    The targets of any other (drug, ligand, stimulation, dose) are names of their own: one that happens to be
    an alias of a gene is not renamed to the gene.
    """
    return bool(_GENETIC.search(re.sub(r"[^a-z0-9]", "", modality.lower())))


class ColumnSpec(Config):
    """A column of ``obs``."""

    column: str
    """Name of the column."""


class ContextSpec(Config):
    """The biological context (cell line, cell type): a column of ``obs``, or one value for all cells."""

    column: str | None = None
    """Column of ``obs`` with the context of each cell."""
    value: str | None = None
    """One context for all cells, instead of a column."""

    @field_validator("value", mode="before")
    @classmethod
    def _text(cls, value: object) -> object:
        return None if value is None else as_text(value)

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.column is None) == (self.value is None):
            raise ValueError("give either 'column' or 'value'")
        return self


class PerturbationSpec(Config):
    """How ``obs`` names the perturbation of a cell."""

    column: str
    """Column of ``obs`` with the perturbation of each cell."""
    control: str | list[str] = []
    """The label, or labels, of control cells; as one of several targets it is ignored (``KLF1+ctrl``).
    Labels may be numbers or booleans. A label that is only spelt like a control is refused. It is needed,
    except for signatures, which have no control rows."""
    separator: str | None = None
    """Text between the targets of a combination; None: each label is one target. It separates nothing inside
    brackets, as in ``(+)-JQ1``, and inside the name of a gene, as in ``HLA-A``."""
    remove: str | None = None
    """A regular expression whose matches are removed from every target, such as a guide's ``_pDS.*$``."""
    rename: dict[str, str] = {}
    """New names for targets, for example ``{stimulated: IFNB1}``."""
    exclude: list[str] = []
    """Labels of cells to leave out, for example those without a detected guide."""
    missing: Literal["error", "drop"] = "error"
    """What to do with cells that have no label; the texts ``nan``, ``NA``, ``None`` and the like are none,
    unless another setting names them.

    - ``error``: stop with a message; use it unless you know why labels are missing.
    - ``drop``: leave these cells out; use it for cells without a detected guide.
    """

    @field_validator("control", "rename", "exclude", mode="before")
    @classmethod
    def _text(cls, value: object) -> object:
        return as_text(value)

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
    """The matrix that holds the values."""

    layer: str | None = None
    """Name of a layer; ``raw`` is ``.raw`` if there is no layer of this name; None: ``X``."""
    round: bool = False
    """Whether to round values to whole numbers; use it for estimated counts (SoupX, alevin, RSEM)."""


class DatasetGenesSpec(Config):
    """The columns of ``var`` that describe the genes."""

    column: str | None = None
    """Column of identifiers (symbols or Ensembl ids); None: the index of ``var``."""
    symbols: str | None = None
    """Column of symbols in addition to Ensembl ids; None: symbol, gene_symbols or gene_name, if it exists."""
    length: str | None = None
    """Column of transcript lengths in bases; needed for TPM."""
    features: Literal["genes", "all"] = "genes"
    """Columns of the matrix that are converted.

    - ``genes``: leave out columns whose ``feature_types`` is not ``Gene Expression`` (antibodies, guides),
      and columns named after nucleases and guides; neither the panel nor library sizes contain them.
    - ``all``: every column is a gene; use it if genes of yours are taken for something else.
    """


class QualitySpec(Config):
    """Quality control of a screen: columns that it needs, and what it leaves out; without limits, nothing."""

    guide: str | None = None
    """Column of ``obs`` with the guide of each cell; None: guides are not counted."""
    n_guides: str | None = None
    """Column with the number of guides of each cell; None: doublets of guides are not counted."""
    max_guides: int | None = Field(None, ge=1)
    """Leave out cells with more guides; None: none. It needs ``n_guides``."""
    min_perturbed: float | None = Field(None, gt=0, lt=1)
    """Leave out perturbed cells whose probability of being perturbed is lower (escaped cells); None: none.
    Cells of a target without a detectable response have no probability, and stay."""
    min_cells: int | None = Field(None, ge=1)
    """Leave out perturbations with fewer cells in a context, after the other limits; None: none."""

    @model_validator(mode="after")
    def _counted(self) -> Self:
        if self.max_guides is not None and self.n_guides is None:
            raise ValueError("'max_guides' needs 'n_guides', the column with the number of guides")
        return self

    @property
    def leaves_out(self) -> bool:
        """Whether any limit is set."""
        return any(limit is not None for limit in (self.max_guides, self.min_perturbed, self.min_cells))


class DatasetSpec(Config):
    """One ``.h5ad`` file or ``.zarr`` folder, and what its columns mean."""

    name: str
    """Name of the dataset: letters, digits, ``_``, ``-`` and ``.``; unique in the spec."""
    path: str
    """Path of the ``.h5ad`` file or ``.zarr`` folder, relative to the folder of the spec."""
    perturbation: PerturbationSpec | None = None
    """How ``obs`` names perturbations; None: an atlas without perturbations, all cells are controls."""
    context: ContextSpec = ContextSpec(value="unspecified")
    """Cell line or cell type: ``{column: …}`` of ``obs``, or ``{value: …}`` for all cells."""
    modality: str | dict[str, str] = UNSPECIFIED
    """How targets are perturbed, such as CRISPRi: one for the dataset, or one per target, for example
    ``{default: CRISPRko, TCR: stimulation}``. CRISPRa and overexpression count as activation; CRISPRi,
    knockout, knockdown and RNAi as loss of function; any other name has no direction."""
    batch: ColumnSpec | None = None
    """Column of ``obs`` with the batch of each cell; None: no batches."""
    counts: CountsSpec = CountsSpec()
    """Matrix of the values: ``X``, ``raw``, or the name of a layer."""
    total_counts: str | None = None
    """Column with the true library size of each cell; None: the sum over the measured genes."""
    kind: Kind = "cells"
    """What a row of the file is.

    - ``cells``: one cell per row; use it for single-cell screens.
    - ``profiles``: one mean or bulk profile per row and condition; use it for pseudobulk and L1000-like data.
    - ``signatures``: one signed effect per row and condition, a difference from the control, where 0 is no
      response; use it for log-fold changes, LINCS and drug screens. There are no control rows.
    """
    values: ValuesAre = "counts"
    """What the values are.

    - ``counts``: raw counts, normalised by tadvae; use it whenever you have them.
    - ``log1p``: already normalised and log-transformed; use it if there are no counts. They are not
      normalised again.
    - ``effects``: signed effects; the values of signatures, and only of these, without being asked for. They
      are kept as they are.
    """
    genes: DatasetGenesSpec = DatasetGenesSpec()
    """Columns of ``var`` that describe the genes."""
    qc: QualitySpec | None = None
    """Quality control: columns of guides, and limits for cells that are left out; None: no limits."""
    covariates: dict[str, CovariateSpec] = {}
    """Covariates of cells by name: ``dose`` and ``time`` are numbers of a perturbation, with a ``unit``, and
    the model reads them as such; any other name is a label that is stored with the cells, or with
    ``in_context`` part of their context. Example:
    ``{dose: {column: dose, unit: uM}, donor: {column: donor}}``."""

    @field_validator("covariates")
    @classmethod
    def _names_of_covariates(cls, covariates: dict[str, CovariateSpec]) -> dict[str, CovariateSpec]:
        for name, each in covariates.items():
            if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
                raise ValueError(f"'{name}' is no name of a covariate: expected letters, digits and '_'")
            if each.unit and name not in AMOUNTS:
                raise ValueError(
                    f"'{name}' is a label and has no unit; only {' and '.join(AMOUNTS)} have one"
                )
            if each.in_context and name in AMOUNTS:
                raise ValueError(f"'{name}' is a number of a perturbation and cannot be part of the context")
        return covariates

    @field_validator("name", "modality", mode="before")
    @classmethod
    def _text(cls, value: object) -> object:
        return as_text(value)

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

    @model_validator(mode="before")
    @classmethod
    def _signatures_hold_effects(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("kind") == "signatures":
            return {"values": "effects", **data}
        return data

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.kind == "signatures") != (self.values == "effects"):
            raise ValueError("'kind: signatures' and 'values: effects' belong together; drop the other one")
        if self.kind == "signatures":
            self._check_signatures()
        elif self.perturbation is not None and not self.perturbation.controls:
            raise ValueError("'perturbation' needs 'control', the label of control cells")
        if self.counts.round and self.values == "log1p":
            raise ValueError(
                "'counts.round' is for counts, and 'values: log1p' says there are none; drop one"
            )
        if self.qc is not None and (self.kind != "cells" or self.perturbation is None):
            raise ValueError("'qc' is for cells of a screen with 'perturbation'; drop it")
        if isinstance(self.modality, dict) and "default" not in self.modality:
            raise ValueError("a modality by target needs a 'default'")
        return self

    def _check_signatures(self) -> None:
        if self.perturbation is None:
            raise ValueError(
                "signatures need 'perturbation', the column that names what each row responds to"
            )
        if self.total_counts is not None:
            raise ValueError("'total_counts' is for counts, and signatures have none; drop it")
        if self.counts.round:
            raise ValueError("'counts.round' is for counts, and signatures have none; drop it")

    def modality_of(self, target: str) -> str:
        """The modality by which ``target`` is perturbed."""
        if isinstance(self.modality, str):
            return self.modality
        return self.modality.get(target, self.modality["default"])


class GenesSpec(Config):
    """How gene identifiers of different datasets are mapped to one vocabulary."""

    reference: str = "human"
    """The table that maps identifiers to genes.

    - ``human``: the packaged table of human genes; use it for human data.
    - ``none``: identifiers are used as they are; use it if all files name their genes in the same way.
    - a path: your own table (Parquet or TSV); use it for other organisms.
    """
    max_unknown: float = Field(0.5, ge=0, le=1)
    """Largest accepted share of unknown identifiers in a dataset, from 0 to 1; above it, convert stops."""


class LayoutSpec(Config):
    """Physical layout of the store; it does not change what is stored."""

    bag_size: int = Field(64, ge=1)
    """Largest number of cells of one (dataset, context, perturbation) that are stored and read together."""
    row_group_rows: int = Field(1024, ge=1)
    """Cells per row group of a Parquet file, the smallest part that is read at once."""
    shard_rows: int = Field(16384, ge=1)
    """Cells per file; by default about 25 MB if cells have 1,500 genes. A task holds one file in memory."""
    chunk_rows: int = Field(8192, ge=1)
    """Cells that a conversion task reads at once; it changes the memory that a task needs, not the result."""
    seed: int = 0
    """Seed of the random order of cells and bags."""


class StoreSpec(Config):
    """All settings of ``SPEC.yaml``."""

    datasets: list[DatasetSpec] = Field(min_length=1)
    """The files to convert, at least one."""
    genes: GenesSpec = GenesSpec()
    """How gene identifiers are mapped to one vocabulary."""
    layout: LayoutSpec = LayoutSpec()
    """Sizes and order of the stored files."""

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        # Compared in lower case: names become file names, and some file systems ignore case.
        names = [dataset.name.lower() for dataset in self.datasets]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"dataset names must differ, but '{repeated[0]}' is repeated; rename one")
        for name in AMOUNTS:
            units = sorted({each.covariates[name].unit for each in self.datasets if name in each.covariates})
            if len(units) > 1:
                raise ValueError(
                    f"datasets give '{name}' in {' and '.join(repr(unit) for unit in units)}; bring the "
                    "columns to one unit"
                )
        return self

    @property
    def units(self) -> dict[str, str]:
        """Unit of each amount that a dataset has, by name."""
        return {
            name: each.covariates[name].unit
            for name in AMOUNTS
            for each in self.datasets
            if name in each.covariates
        }


def is_zarr(path: Path) -> bool:
    """Whether the path is the folder of a zarr store."""
    return any((path / name).is_file() for name in (".zgroup", "zarr.json", ".zmetadata", ".zattrs"))


def load_spec(path: str | Path) -> StoreSpec:
    """Read ``SPEC.yaml``; its paths are relative to the folder of the file."""
    return _located(StoreSpec.parse(read_yaml(path), str(path)), str(path), Path(path).absolute().parent)


def load_spec_text(text: str, source: str, folder: Path) -> StoreSpec:
    """Read the text of a spec; its paths are relative to ``folder``."""
    return _located(StoreSpec.parse(parse_yaml(text, source), source), source, folder.absolute())


def _located(spec: StoreSpec, path: str, folder: Path) -> StoreSpec:
    """The spec with absolute paths of files that exist."""
    datasets = []
    for dataset in spec.datasets:
        source = folder / Path(dataset.path).expanduser()
        if not source.is_file() and not is_zarr(source):
            raise UserError(
                f"{path}: dataset '{dataset.name}': no file at {source}, and no .zarr folder; "
                "correct its 'path'."
            )
        datasets.append(dataset.model_copy(update={"path": str(source)}))
    genes = spec.genes
    if genes.reference not in ("human", "none"):
        table = folder / Path(genes.reference).expanduser()
        genes = genes.model_copy(update={"reference": str(table)})
    return spec.model_copy(update={"datasets": datasets, "genes": genes})
