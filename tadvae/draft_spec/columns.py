"""Which columns of ``obs`` name perturbations, contexts, batches, library sizes and modalities."""

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from tadvae.draft_spec.control_labels import is_control_label
from tadvae.draft_spec.file import Column, Head, LookedAt
from tadvae.draft_spec.labels import separator_of, share_of_genes, suffix_of_guides

_PERTURBATION = [  # what the name of a column says, the strongest first
    (6, r"perturbations?|perturbations?[_ .]?(names?|labels?|target|gene)|perturbed[_ .]?genes?"),
    (5, r"conditions?|conditions?[_ .]?(names?|labels?)"),
    (
        5,
        r"drugs?|drug[_ .]?(names?|treatment)|compounds?([_ .]?name)?|sm[_ .]?name|pert(_i?name)?",
    ),
    (4, r"(gene[_ .]?)?targets?|target[_ .]?genes?|gene[_ .]?targets?|treatments?|cytokines?|ligands?"),
    (3, r"genes?|gene[_ .]?names?|stim(ulation|ulus)?|knock(out|down)s?|ko|crispr"),
]
_GUIDE = re.compile(r"(?i).*(s?g[_ .]?rnas?|guides?|protospacer|feature_call|barcode_call).*")
_N_GUIDES = re.compile(
    r"(?i)(n|num|number|nr)[_ .]?(of[_ .])?(guides?|s?grnas?|features)|(guide|s?grna)[_ .]?counts?"
)
_DRUG = re.compile(r"(?i)(drug|compound|small|sm_|pert_iname).*")
_CONTEXT = re.compile(r"(?i)(cell[_ .]?(line|type)s?|context)")
_LIKE_CONTEXT = re.compile(
    r"(?i)(cell[_ .]?(line|type|subtype|class).*|contexts?|line|tissues?|organ|celltype.*)"
)
_BATCH = re.compile(
    r"(?i)(batch|batch[_ .]?(id|name)|(bio[_ .]?)?(rep|replicate)s?[_ .]?\w*|gem[_ .]?group|lane|samples?|"
    r"sample[_ .]?(id|name)|plate|donor[_ .]?(id)?|patient[_ .]?(id)?|library[_ .]?(id|batch)?|channel|pool)"
)
_COUNTS = re.compile(
    r"(?i)(n_?counts?(_rna)?|n_?umis?(_rna)?|total_?(counts?|umis?)|umi_?counts?|(cov_)?(response_)?n_umis)"
)
_MODALITY = re.compile(
    r"(?i)(modality|(perturbation|pert|crispr)[_ .]?(type|method|modality|mode)s?|type_of_pert.*)"
)
_MODALITIES = [  # what a text says of how targets are perturbed
    ("CRISPRa", r"crispr[\W_]?(a(?![a-z])|act)|vp64|vpr(?![a-z])|suntag"),
    ("CRISPRi", r"crispr[\W_]?(i(?![a-z])|inter)|krab"),
    ("Cas13d", r"cas13"),
    ("RNAi", r"rnai|s[hi]rna|morpholino"),
    ("overexpression", r"over[\W_]?express|(?<![a-z])orf"),
    ("knockdown", r"knock[\W_]?down"),
    ("CRISPRko", r"crispr[\W_]?(ko|cas9|$|[\W_])|knock[\W_]?out|(?<![a-z])ko(?![a-z])|crop[\W_]?seq|eccite"),
    ("drug", r"drug|compound|small[\W_]?molecule|chemical"),
    ("ligand", r"ligand|cytokine"),
]
MOST_CONTEXTS = 500
"""Columns of more labels name no contexts."""


@dataclass(frozen=True)
class PerturbationColumn:
    """A column of obs that may name perturbations.

    Attributes
    ----------
    column
        The column.
    separator
        Text between the targets of combinations.
    remove
        Pattern of the suffixes of guides.
    controls
        Labels that are spelt like controls.
    genes
        Share of the targets that are genes.
    score
        How much speaks for it.
    """

    column: Column
    separator: str | None
    remove: str | None
    controls: tuple[str, ...]
    genes: float
    score: float


def is_modality_column(column: Column) -> bool:
    """Whether the column says how targets are perturbed."""
    return bool(_MODALITY.fullmatch(column.name)) and len(column.labels) <= 20


def modality_in(text: str) -> str | None:
    """The modality that a text names, such as a label or the name of a file."""
    lower = text.casefold()
    return next((name for name, pattern in _MODALITIES if re.search(pattern, lower)), None)


def is_drug_column(name: str) -> bool:
    """Whether the name of a column says that it names drugs."""
    return bool(_DRUG.fullmatch(name))


def guide_columns(file: LookedAt, perturbation: Column) -> dict[str, str]:
    """The column with the guide of each cell, and that with its number of guides, as ``qc`` names them.

    A guide has few perturbations: itself, and in a stimulated screen itself with the stimulus.
    """
    result: dict[str, str] = {}
    codes = pd.factorize(perturbation.values)[0]
    for column in file.columns.values():
        if _N_GUIDES.fullmatch(column.name):
            numbers = pd.to_numeric(column.values, errors="coerce").to_numpy(np.float64, na_value=np.nan)
            if (numbers >= 0).all() and (numbers == np.rint(numbers)).all():
                result.setdefault("n_guides", column.name)
        elif _GUIDE.fullmatch(column.name) and not column.is_number and column.name != perturbation.name:
            guides = pd.factorize(column.values)[0]
            pairs = pd.DataFrame({"guide": guides, "perturbation": codes}).drop_duplicates()
            if min(len(perturbation.labels), 2) <= len(column.labels) and len(pairs) <= 3 * len(
                column.labels
            ):
                result.setdefault("guide", column.name)
    return dict(sorted(result.items()))


def judged(column: Column, is_gene: Callable[[str], bool]) -> PerturbationColumn:
    """What speaks for a column as that of perturbations."""
    separator = separator_of(column.labels, is_gene)
    remove = suffix_of_guides(column.labels, is_gene)
    genes = share_of_genes(column.labels, separator, is_gene)
    controls = tuple(label for label in column.labels if is_control_label(label))
    names = (points for points, words in _PERTURBATION if re.fullmatch(f"(?i){words}", column.name))
    score = next(names, 0) + 4 * bool(controls) + 3 * max(genes, 0.5 * bool(remove))
    return PerturbationColumn(column, separator, remove, controls, genes, score)


def perturbation_columns(file: LookedAt, is_gene: Callable[[str], bool]) -> list[PerturbationColumn]:
    """Columns that may name perturbations, the best first."""
    n = len(file.obs)
    found = []
    for column in file.columns.values():
        other = any(p.fullmatch(column.name) for p in (_LIKE_CONTEXT, _BATCH, _COUNTS, _MODALITY))
        if other or column.is_number or not column.labels or column.n_missing > 0.9 * n:
            continue
        each = judged(column, is_gene)
        if each.score >= 3 and (len(column.labels) > 1 or each.score >= 5):
            found.append(each)
    return sorted(found, key=lambda each: -each.score)


def same_cells(one: Column, other: Column) -> bool:
    """Whether two columns divide the cells into the same groups."""
    codes = pd.DataFrame({"one": pd.factorize(one.values)[0], "other": pd.factorize(other.values)[0]})
    pairs = len(codes.drop_duplicates())
    return bool(pairs == codes["one"].nunique() == codes["other"].nunique())


def context_columns(file: LookedAt, taken: str | None) -> tuple[list[str], list[str]]:
    """Columns that name contexts by the field's usual words, and those that do so by similar words."""
    sure: list[str] = []
    likely: list[str] = []
    for name, column in file.columns.items():
        fits = name != taken and not column.is_number and not column.n_missing
        if not fits or not 1 <= len(column.labels) <= min(MOST_CONTEXTS, max(1, len(file.obs) // 2)):
            continue
        if _CONTEXT.fullmatch(name):
            sure.append(name)
        elif _LIKE_CONTEXT.fullmatch(name):
            likely.append(name)
    return sorted(sure, key=lambda name: "line" not in name.casefold()), likely


def without_controls(file: LookedAt, context: str, perturbation: Column, is_control: set[str]) -> list[str]:
    """Contexts of perturbed cells that have no control cells."""
    labels = perturbation.values.astype(str).str.strip().isin(is_control).to_numpy()
    names = file.obs[context].astype(str).to_numpy()
    return sorted(set(names[~labels]) - set(names[labels]))


def batch_column(file: LookedAt, taken: set[str], perturbation: Column | None) -> str | None:
    """The column of batches: most cells lie in batches of several perturbations."""
    for name, column in file.columns.items():
        fits = _BATCH.fullmatch(name) and name not in taken and not column.n_missing
        if not fits or not 2 <= len(column.labels) <= len(file.obs) // 2:
            continue
        if perturbation is not None:
            pairs = pd.DataFrame({"batch": file.obs[name].astype(str), "label": perturbation.values})
            several = pairs.groupby("batch")["label"].transform("nunique") > 1
            if several.mean() < 0.5:
                continue
        return name
    return None


def library_size_column(file: LookedAt, head: Head) -> str | None:
    """The column of true library sizes, where the panel measures only a part of it."""
    if not head.whole_rows:
        return None
    sums = np.asarray(head.rows.sum(axis=1)).ravel()
    for name, column in file.columns.items():
        if not _COUNTS.fullmatch(name) or not pd.api.types.is_numeric_dtype(column.values.dtype):
            continue
        every = column.values.to_numpy(np.float64, na_value=np.nan)
        if not (np.isfinite(every) & (every >= 0)).all() or (every != np.rint(every)).any():
            continue
        sizes = every[file.row_numbers]
        if (sizes >= sums).all() and np.median(sizes) > 1.02 * np.median(sums):
            return name
    return None
