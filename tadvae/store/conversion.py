"""Plan a conversion before the cells are written: vocabulary, codes, and which cell goes where.

``pipelines/convert.py`` runs the tasks that write the cells (:mod:`tadvae.store.writer`) on Ray, and then
writes everything else (:mod:`tadvae.store.tables`).
"""

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from tadvae.base.version import __version__
from tadvae.genes.features import listed
from tadvae.genes.harmonise import harmonise
from tadvae.genes.reference import GeneReference
from tadvae.store.cell_labels import CellLabels
from tadvae.store.covariates import Amounts, order_of
from tadvae.store.layout import plan_layout
from tadvae.store.left_out_cells import leave_out
from tadvae.store.manifest import SCHEMA_VERSION
from tadvae.store.source import open_source
from tadvae.store.spec import DatasetSpec, StoreSpec
from tadvae.store.targets import harmonise_targets
from tadvae.store.writer import DatasetPlan

log = logging.getLogger("tadvae")

Perturbation = tuple[tuple[str, str], ...]
"""Sorted (target, modality) pairs; the empty tuple is the control."""


@dataclass(frozen=True)
class StorePlan:
    """Everything that a store holds except its cells."""

    spec: StoreSpec
    """The spec that the store is converted from."""
    genes: pd.DataFrame
    """The vocabulary, one row per gene: gene, ensembl_id, symbol."""
    panels: list[pd.DataFrame]
    """Per dataset, a table with one row per source gene: source, var_name, gene, gene_index, how, length."""
    contexts: list[str]
    """Sorted names of the contexts of all datasets."""
    perturbations: list[Perturbation]
    """Perturbations of all datasets, in the order of their indices; the control comes first."""
    amounts: list[Amounts]
    """Dose and time of each of them."""
    target_gene: dict[str, str | None]
    """Gene key of each target, None for a target that is not a gene."""
    datasets: list[DatasetPlan]
    """What the conversion tasks need, per dataset."""
    left_out: list[dict[str, int]]
    """Per dataset, the number of columns that are not genes, by kind."""
    dropped: list[dict[str, int]]
    """Per dataset, the number of cells that its quality control leaves out, by reason."""

    @property
    def n_bytes(self) -> int:
        """Size of the source files."""
        return sum(_size_and_time(dataset.path)[0] for dataset in self.spec.datasets)

    def fingerprint(self) -> str:
        """Hash of the spec and the source files; a conversion resumes only if it is unchanged."""
        paths = [dataset.path for dataset in self.spec.datasets]
        if self.spec.genes.reference not in ("human", "none"):
            paths.append(self.spec.genes.reference)
        sources = [(path, *_size_and_time(path)) for path in paths]
        text = json.dumps([__version__, SCHEMA_VERSION, self.spec.model_dump(mode="json"), sources])
        return hashlib.sha256(text.encode()).hexdigest()


def plan_store(spec: StoreSpec, perturbed: Mapping[int, np.ndarray] | None = None) -> StorePlan:
    """Read labels and genes of every source, and decide vocabulary, codes and layout.

    Parameters
    ----------
    perturbed
        By index of the dataset, the probabilities that cells are perturbed; see
        :func:`tadvae.store.left_out_cells.leave_out`. Without them, escaped cells are not left out.

    Raises
    ------
    UserError
        If the input is inconsistent or unreadable; nothing has been written then.
    """
    reference = GeneReference.load(spec.genes.reference)
    panels, all_labels, n_rows, columns, left_out, dropped = [], [], [], [], [], []
    for i, dataset in enumerate(spec.datasets):
        with open_source(dataset) as source:
            left_out.append(source.leave_out_others(reference))
            columns.append(source.columns)
            names, symbols = source.gene_names()
            panel = harmonise(
                names, reference, where=source.where, symbols=symbols, max_unknown=spec.genes.max_unknown
            )
            lengths = source.gene_lengths()
            panel["length"] = np.nan if lengths is None else lengths
            panel["var_name"] = source.var_names()
            panels.append(panel)
            labels, counts = leave_out(
                source.labels(reference.is_official), dataset, (perturbed or {}).get(i)
            )
            all_labels.append(labels)
            dropped.append(counts)
            n_rows.append(source.shape[0])
            _say(source.check_values())
            if left_out[-1]:
                _say(f"{source.where}: columns that are not genes are left out ({listed(left_out[-1])}).")
            if counts:
                _say(f"{source.where}: cells are left out by its 'qc' ({listed(counts)}).")

    target_gene, specs, all_labels = harmonise_targets(spec.datasets, all_labels, reference, panels)
    genes = _vocabulary(panels, target_gene, reference)
    index = pd.Series(np.arange(len(genes)), index=genes["gene"])
    for panel in panels:
        panel["gene_index"] = index[panel["gene"]].to_numpy()

    contexts = sorted({context for labels in all_labels for context in labels.contexts})
    distinct = {
        (with_modality(targets, dataset), amounts)
        for labels, dataset in zip(all_labels, specs, strict=True)
        for targets, amounts in zip(labels.perturbations, labels.amounts, strict=True)
    }
    datasets = []
    for i, (dataset, labels) in enumerate(zip(specs, all_labels, strict=True)):
        bag_size = spec.layout.bag_size if dataset.kind == "cells" else 1
        datasets.append(
            DatasetPlan(
                index=i,
                spec=dataset,
                columns=columns[i],
                column_gene=panels[i]["gene_index"].to_numpy(np.int64),
                n_vocabulary=len(genes),
                labels=labels,
                layout=plan_layout(labels, spec.layout, bag_size=bag_size, key=(i,)),
                n_source_rows=n_rows[i],
                units=spec.units,
            )
        )
    for dataset, labels in zip(specs, all_labels, strict=True):
        _say(_few_controls(dataset, labels))
    keys = sorted(distinct, key=lambda key: (len(key[0]), key[0], order_of(key[1])))
    perturbations, amounts = [item for item, _ in keys], [each for _, each in keys]
    return StorePlan(
        spec, genes, panels, contexts, perturbations, amounts, target_gene, datasets, left_out, dropped
    )


def with_modality(targets: tuple[str, ...], dataset: DatasetSpec) -> Perturbation:
    """Targets of a perturbation, each with the modality that it has in a dataset."""
    return tuple((target, dataset.modality_of(target)) for target in targets)


def _few_controls(dataset: DatasetSpec, labels: CellLabels) -> str | None:
    """A note on contexts whose perturbed cells have fewer than two control cells to compare with."""
    control = labels.perturbations.index(()) if () in labels.perturbations else -1
    is_control = labels.perturbation == control
    n = len(labels.contexts)
    controls = np.bincount(labels.context[is_control], minlength=n)
    perturbed = np.bincount(labels.context[~is_control], minlength=n)
    none, one = (
        [f"'{labels.contexts[c]}'" for c in np.flatnonzero((perturbed > 0) & (controls == few))]
        for few in (0, 1)
    )
    if dataset.kind != "cells":
        one = []  # one mean profile of the controls is the usual case
    if not none and not one:
        return None
    parts = [f"no control cells in {_some(none)}, which cannot be trained on"] if none else []
    parts += [f"one control cell in {_some(one)}, which every perturbation is compared with"] if one else []
    return (
        f"dataset '{dataset.name}' ({dataset.path}): {' and '.join(parts)}; add controls, or give one "
        "context to these cells and those of other contexts."
    )


def _some(names: list[str], most: int = 5) -> str:
    """The first few of the names of contexts."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{'context' if len(names) == 1 else 'contexts'} {', '.join(names[:most])}{more}"


def _say(note: str | None) -> None:
    if note is not None:
        log.warning("%s", note)


def _size_and_time(path: str) -> tuple[int, float]:
    """Bytes and time of the last change of a file, or of all files of a folder."""
    places = [path, *(os.path.join(at, name) for at, _, names in os.walk(path) for name in names)]
    found = [os.lstat(place) for place in places]
    return sum(each.st_size for each in found), max(each.st_mtime for each in found)


def _vocabulary(
    panels: list[pd.DataFrame], target_gene: dict[str, str | None], reference: GeneReference
) -> pd.DataFrame:
    """Union of the genes of all panels and of all targets that are genes, sorted by key."""
    known = pd.concat([panel[["gene", "ensembl_id", "symbol"]] for panel in panels])
    known = known.sort_values("symbol", na_position="last", kind="stable").drop_duplicates("gene")
    measured = set(known["gene"])
    unmeasured = [gene for gene in target_gene.values() if gene is not None and gene not in measured]
    extra = pd.DataFrame(
        {
            "gene": unmeasured,
            "ensembl_id": [gene if gene.startswith("ENSG") else None for gene in unmeasured],
            "symbol": [reference.symbol(gene) for gene in unmeasured],
        },
        dtype=object,
    )
    genes = pd.concat([known, extra.drop_duplicates("gene")]) if len(extra) else known
    return genes.sort_values("gene").reset_index(drop=True)
