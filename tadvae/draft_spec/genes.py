"""Which column of ``var`` names the genes, and whether they are human."""

from dataclasses import dataclass

import pandas as pd

from tadvae.base.errors import UserError
from tadvae.genes.features import FEATURE_TYPES, other_features
from tadvae.genes.harmonise import harmonise
from tadvae.genes.reference import GeneReference

NAMED = (
    *("ensembl_id", "gene_ids", "gene_id", "ensembl", "ensg", "feature_id"),
    *("symbol", "gene_symbols", "gene_symbol", "gene_name", "gene_names", "gene", "feature_name"),
)
"""Columns of var that may name genes, the best identifier first."""
_HUMAN, _MANY = 0.5, 0.3
"""Shares of official names: from here on genes are human, and from here on if all else fits too."""


@dataclass(frozen=True)
class GeneColumn:
    """A column of var with identifiers.

    Attributes
    ----------
    column
        Its name; None: the index of var.
    is_human
        Whether the human gene reference knows most of its genes.
    names
        The identifiers.
    """

    column: str | None
    is_human: bool
    names: frozenset[str]


def gene_column(var: pd.DataFrame, where: str) -> GeneColumn:
    """The column of var with the largest share of human genes; the index where others are no better.

    Raises
    ------
    UserError
        If the genes are human, but no column can be used, for example because a gene occurs twice.
    """
    names = [str(name) for name in var.columns]
    found: dict[tuple[bool, float, int], tuple[str | None, list[str], UserError | None]] = {}
    for i, column in enumerate([None, *(name for name in NAMED if names.count(name) == 1)]):
        genes, known, problem = _judged(var, column, where)
        found[problem is None, round(known, 2), -i] = (column, genes, problem)
    usable, known, _ = best = max(found)
    column, genes, problem = found[best]
    if problem is not None and known >= _HUMAN:
        raise problem
    is_human = usable and known >= _MANY
    if not is_human:  # of another organism: the names of its index are as good as any
        column, genes, _ = found[max(key for key in found if key[2] == 0)]
    return GeneColumn(column, is_human, frozenset(genes))


def _judged(var: pd.DataFrame, column: str | None, where: str) -> tuple[list[str], float, UserError | None]:
    """The genes of a column, the share of official human names, and why they cannot be used."""
    values = var.index.to_series() if column is None else var[column]
    names = values.astype(object).where(values.notna(), "").astype(str).tolist()
    human = GeneReference.load("human")
    types = var[FEATURE_TYPES] if FEATURE_TYPES in var.columns else None
    kinds = other_features(names, types, human)
    genes = [name for name, kind in zip(names, kinds, strict=True) if kind is None]
    known = sum(map(human.is_official, genes)) / len(genes) if genes else 0.0
    try:
        harmonise(genes, human, where=where)
    except UserError as error:
        return genes, known, error
    return genes, known, None if genes else UserError(f"{where}: none of its columns is a gene.")
