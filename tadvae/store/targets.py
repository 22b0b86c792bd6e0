"""Give each target one name in all datasets of a store: a gene's official symbol, or else its own name."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from tadvae.base.errors import UserError
from tadvae.genes.harmonise import canonical_targets
from tadvae.genes.reference import GeneReference
from tadvae.store.cell_labels import CellLabels
from tadvae.store.covariates import order_of
from tadvae.store.spec import UNSPECIFIED, DatasetSpec, is_genetic
from tadvae.store.writer import perturbation_label


def harmonise_targets(
    specs: Sequence[DatasetSpec],
    all_labels: Sequence[CellLabels],
    reference: GeneReference,
    panels: Sequence[pd.DataFrame],
) -> tuple[dict[str, str | None], list[DatasetSpec], list[CellLabels]]:
    """Rename the targets that are genes.

    Returns
    -------
    Gene key by target (None: not a gene), and the specs and labels under the new names.

    Raises
    ------
    UserError
        If ``modality`` names a target that no dataset has, or two perturbations of a dataset would get the
        same name.
    """
    measured = {gene for panel in panels for gene in panel["gene"]}
    modalities = _modalities(specs, all_labels, reference)
    target_gene: dict[str, str | None] = {}
    new_specs, new_labels = [], []
    for spec, labels, modality_of in zip(specs, all_labels, modalities, strict=True):
        names = list(modality_of)
        aliases = [_may_be_alias(spec, modality_of[name]) for name in names]
        renamed = {}
        for name, found in zip(names, canonical_targets(names, reference, aliases=aliases), strict=True):
            gene = found if found is not None else (name if name in measured else None)
            renamed[name] = (reference.symbol(gene) or name) if gene is not None else name
            target_gene[renamed[name]] = gene or target_gene.get(renamed[name])
        if not isinstance(spec.modality, str):
            own = {renamed[name]: modality for name, modality in modality_of.items()}
            spec = spec.model_copy(update={"modality": own | {"default": spec.modality["default"]}})
        new_specs.append(spec)
        new_labels.append(_renamed(labels, renamed, f"dataset '{spec.name}'"))
    return target_gene, new_specs, new_labels


def _may_be_alias(spec: DatasetSpec, modality: str) -> bool:
    """Whether a target may be called by an alias of its gene; signatures do so only if said to."""
    return is_genetic(modality) and not (spec.kind == "signatures" and modality == UNSPECIFIED)


def _modalities(
    specs: Sequence[DatasetSpec], all_labels: Sequence[CellLabels], reference: GeneReference
) -> list[dict[str, str]]:
    """Modality of every target of each dataset; ``modality`` may call a gene otherwise than the labels."""
    each = [sorted({name for item in labels.perturbations for name in item}) for labels in all_labels]
    gene_of = {
        name: gene
        for names in each
        for name, gene in zip(names, canonical_targets(names, reference), strict=True)
    }
    genes = {gene for gene in gene_of.values() if gene is not None}
    result = []
    for spec, names in zip(specs, each, strict=True):
        if isinstance(spec.modality, str):
            result.append(dict.fromkeys(names, spec.modality))
            continue
        given = [name for name in spec.modality if name != "default"]
        other = [name for name in given if name not in names]  # the names of genes as others write them
        keys = canonical_targets(other, reference)
        by_gene = {key: name for key, name in zip(keys, other, strict=True) if key is not None}
        absent = sorted(
            name for name, key in zip(other, keys, strict=True) if name not in gene_of and key not in genes
        )
        if absent:  # a misspelt target would silently get the default modality and its sign
            raise UserError(
                f"dataset '{spec.name}': 'modality' names {', '.join(absent[:5])}, but no dataset of the "
                "spec has this target; fix its spelling in the spec."
            )
        result.append(
            {
                name: spec.modality[name if name in given else by_gene.get(gene_of[name] or "", "default")]
                for name in names
            }
        )
    return result


def _renamed(labels: CellLabels, renamed: dict[str, str], where: str) -> CellLabels:
    """The labels of a dataset with the new names of targets.

    Raises
    ------
    UserError
        If two different perturbations would have the same name, so that their cells could not be told apart.
    """
    items = [
        (tuple(sorted({renamed[name] for name in item})), amounts)
        for item, amounts in zip(labels.perturbations, labels.amounts, strict=True)
    ]
    distinct = sorted(set(items), key=lambda key: (len(key[0]), key[0], order_of(key[1])))
    called: dict[str, tuple[str, ...]] = {}
    for item, _ in distinct:
        name = perturbation_label(item)
        if called.setdefault(name, item) != item:
            both = " and ".join(
                "the control" if not each else " with ".join(repr(target) for target in each)
                for each in (called[name], item)
            )
            raise UserError(
                f"{where}: two different perturbations would be called '{name}' ({both}); give a target "
                "another name under 'perturbation.rename'."
            )
    code_of = {item: code for code, item in enumerate(distinct)}
    code = np.array([code_of[item] for item in items], dtype=np.int64)
    spelt = {
        label: tuple(sorted({renamed.get(name, name) for name in item}))
        for label, item in labels.spelt.items()
    }
    return replace(
        labels,
        perturbations=[targets for targets, _ in distinct],
        amounts=[amounts for _, amounts in distinct],
        perturbation=code[labels.perturbation],
        spelt=spelt,
    )
