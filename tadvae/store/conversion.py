"""Plan a conversion before the cells are written, and finish the store after it.

``pipelines/convert.py`` runs the tasks that write the cells (:mod:`tadvae.store.writer`) on Ray.
"""

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from tadvae.base.checksums import sha256
from tadvae.base.filesystem import Location
from tadvae.base.version import __version__
from tadvae.cells.moments import Moments
from tadvae.cells.variable_genes import rank_effects, rank_variable_genes
from tadvae.genes.features import listed
from tadvae.genes.harmonise import harmonise
from tadvae.genes.reference import GeneReference
from tadvae.store.cell_labels import CellLabels
from tadvae.store.covariates import AMOUNTS, MOST_LABELS, Amounts, amounts_text, order_of
from tadvae.store.guides import guide_table
from tadvae.store.layout import plan_layout
from tadvae.store.left_out_cells import leave_out
from tadvae.store.manifest import (
    GROUP_KEYS,
    GUIDES,
    LABELS,
    SCHEMA_VERSION,
    Manifest,
    ShardEntry,
    StoredDataset,
    vocabulary_hash,
)
from tadvae.store.source import open_source
from tadvae.store.spec import DatasetSpec, StoreSpec, modality_sign
from tadvae.store.targets import harmonise_targets
from tadvae.store.writer import DatasetPlan, perturbation_label

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
        (_with_modality(targets, dataset), amounts)
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


def finish_store(
    plan: StorePlan,
    moments: list[Moments],
    shards: list[list[tuple[ShardEntry, np.ndarray]]],
    folder: Location,
) -> Manifest:
    """Write all tables of the store except the cells; the manifest is written last.

    Parameters
    ----------
    moments
        Moments of each dataset.
    shards
        For each dataset its shards in order: the shard's entry, and the number of tokens of every cell.
    folder
        Folder of the unfinished store.
    """
    genes = plan.genes.copy()
    genes.insert(0, "gene_index", np.arange(len(genes), dtype=np.int32))
    sums = {"genes.parquet": _write(genes, folder / "genes.parquet")}
    (folder / "datasets").make_folder()
    entries, bags, groups = [], [], []
    code_of = {key: code for code, key in enumerate(zip(plan.perturbations, plan.amounts, strict=True))}
    n_shards = 0
    for dataset, panel, stats, parts, left_out, dropped in zip(
        plan.datasets, plan.panels, moments, shards, plan.left_out, plan.dropped, strict=True
    ):
        name = f"datasets/{dataset.spec.name}.parquet"
        sums[name] = _write(_panel_table(panel, stats, dataset.spec.values), folder / name)
        frame = _bag_table(plan, dataset, code_of, [n_tokens for _, n_tokens in parts])
        frame["shard"] += n_shards
        n_shards += len(parts)
        bags.append(frame)
        groups.append(frame.groupby(GROUP_KEYS, as_index=False)["n_cells"].sum())
        entries.append(
            StoredDataset(
                name=dataset.spec.name,
                kind=dataset.spec.kind,
                values=dataset.spec.values,
                rounded=dataset.spec.counts.round,
                left_out=left_out,
                dropped=dropped,
                n_cells=len(dataset.labels.source_row),
                n_genes=len(panel),
                n_unknown_genes=int((panel["how"] == "unknown").sum()),
                contexts=dataset.labels.contexts,
                n_perturbations=sum(1 for item in dataset.labels.perturbations if item),
                has_total_counts=dataset.spec.total_counts is not None,
                source=Path(dataset.spec.path).name,
                covariates=_covariates(dataset),
            )
        )
    sums["bags.parquet"] = _write(pd.concat(bags, ignore_index=True), folder / "bags.parquet")
    table = _perturbation_table(plan, pd.concat(groups))
    sums["perturbations.parquet"] = _write(table, folder / "perturbations.parquet")
    sums[LABELS] = _write(_label_table(plan), folder / LABELS)
    codes = [
        [
            code_of[_with_modality(targets, each.spec), amounts]
            for targets, amounts in zip(each.labels.perturbations, each.labels.amounts, strict=True)
        ]
        for each in plan.datasets
    ]
    guides = guide_table(plan.datasets, plan.contexts, codes)
    if len(guides):
        sums[GUIDES] = _write(guides, folder / GUIDES)
    # only file names: the folders of the converting machine are private
    named = [dataset.model_copy(update={"path": Path(dataset.path).name}) for dataset in plan.spec.datasets]
    text = plan.spec.model_copy(update={"datasets": named}).to_yaml()
    sums["spec.yaml"] = sha256(text.encode())
    (folder / "spec.yaml").write_text(text)
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        tadvae_version=__version__,
        vocabulary_hash=vocabulary_hash(plan.genes["gene"]),
        n_genes=len(genes),
        n_cells=sum(entry.n_cells for entry in entries),
        bag_size=plan.spec.layout.bag_size,
        contexts=plan.contexts,
        datasets=entries,
        shards=[entry for parts in shards for entry, _ in parts],
    )
    manifest.write(folder, sums)
    return manifest


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


def _with_modality(targets: tuple[str, ...], dataset: DatasetSpec) -> Perturbation:
    return tuple((target, dataset.modality_of(target)) for target in targets)


def _panel_table(panel: pd.DataFrame, moments: Moments, said: str) -> pd.DataFrame:
    """Measured genes of a dataset with mean, variance and detection over all cells.

    The values are linear (CP10K), or effects where these are what the dataset holds.
    """
    measured = panel["gene_index"].to_numpy()
    table = panel[["gene_index", "source", "var_name", "gene", "how", "length"]].copy()
    table["gene_index"] = measured.astype(np.int32)
    table["mean"] = moments.mean[measured]
    table["variance"] = moments.variance[measured]
    table["detection"] = moments.detected[measured] / max(moments.n, 1)
    rank = rank_effects if said == "effects" else rank_variable_genes
    table["hvg_rank"] = rank(table["mean"].to_numpy(), table["variance"].to_numpy())
    return table.sort_values("gene_index").reset_index(drop=True)


def _bag_table(
    plan: StorePlan,
    dataset: DatasetPlan,
    code_of: dict[tuple[Perturbation, Amounts], int],
    n_tokens: list[np.ndarray],
) -> pd.DataFrame:
    bags = dataset.layout.bags
    labels = dataset.labels
    context_code = np.array([plan.contexts.index(name) for name in labels.contexts])
    perturbation_code = np.array(
        [
            code_of[_with_modality(targets, dataset.spec), amounts]
            for targets, amounts in zip(labels.perturbations, labels.amounts, strict=True)
        ]
    )
    edges = np.concatenate([[0], np.cumsum(bags["n_cells"])])
    tokens = np.concatenate([[0], np.cumsum(np.concatenate(n_tokens), dtype=np.int64)])
    return pd.DataFrame(
        {
            "dataset": np.full(len(bags), dataset.index, np.int32),
            "context": context_code[bags["context"]].astype(np.int32),
            "perturbation": perturbation_code[bags["perturbation"]].astype(np.int32),
            "n_cells": bags["n_cells"].to_numpy(np.int32),
            "n_tokens": tokens[edges[1:]] - tokens[edges[:-1]],
            "shard": bags["shard"].to_numpy(np.int32),
            "row_group": bags["row_group"].to_numpy(np.int32),
            "first_row": bags["first_row"].to_numpy(np.int32),
        }
    )


def _label_table(plan: StorePlan) -> pd.DataFrame:
    """What the labels of every dataset, and the parts of labels, mean."""
    rows = [
        (dataset.index, label, list(targets))
        for dataset in plan.datasets
        for label, targets in sorted(dataset.labels.spelt.items())
    ]
    return pd.DataFrame(rows, columns=_LABEL_SCHEMA.names)


def _perturbation_table(plan: StorePlan, groups: pd.DataFrame) -> pd.DataFrame:
    index = {gene: i for i, gene in enumerate(plan.genes["gene"])}
    rows = []
    for code, (item, amounts) in enumerate(zip(plan.perturbations, plan.amounts, strict=True)):
        counts = groups[groups["perturbation"] == code]
        genes = [plan.target_gene[target] for target, _ in item]
        rows.append(
            {
                "perturbation_index": code,
                "name": perturbation_label(tuple(target for target, _ in item))
                + amounts_text(amounts, plan.spec.units),
                "targets": [target for target, _ in item],
                "target_genes": [-1 if gene is None else index[gene] for gene in genes],
                "modalities": [modality for _, modality in item],
                "signs": [modality_sign(modality) for _, modality in item],
                "n_cells": [
                    {"dataset": int(d), "context": int(c), "n_cells": int(n)}
                    for d, c, n in zip(counts["dataset"], counts["context"], counts["n_cells"], strict=True)
                ],
                **{
                    name: np.nan if amount is None else amount
                    for name, amount in zip(AMOUNTS, amounts, strict=True)
                    if name in plan.spec.units
                },
            }
        )
    return pd.DataFrame(rows)


def _covariates(dataset: DatasetPlan) -> dict[str, list[str]]:
    """Covariates for the manifest: amounts with their unit, and the first labels of the free ones."""
    found = {}
    for place, name in enumerate(AMOUNTS):
        if name in dataset.spec.covariates:
            values = {each[place] for each in dataset.labels.amounts} - {None}
            found[name] = [
                f"{value:g}{dataset.units[name]}" for value in sorted(map(float, filter(None, values)))
            ]
    free = {name: sorted(set(each.tolist()) - {""}) for name, each in dataset.labels.covariates.items()}
    return found | {name: labels[:MOST_LABELS] for name, labels in free.items()}


_PERTURBATION_SCHEMA = pa.schema(
    [
        ("perturbation_index", pa.int32()),
        ("name", pa.string()),
        ("targets", pa.list_(pa.string())),
        ("target_genes", pa.list_(pa.int32())),
        ("modalities", pa.list_(pa.string())),
        ("signs", pa.list_(pa.int32())),
        (
            "n_cells",
            pa.list_(pa.struct([("dataset", pa.int32()), ("context", pa.int32()), ("n_cells", pa.int64())])),
        ),
    ]
)


_LABEL_SCHEMA = pa.schema(
    [("dataset", pa.int32()), ("label", pa.string()), ("targets", pa.list_(pa.string()))]
)


def _write(frame: pd.DataFrame, place: Location) -> str:
    """Write a table; returns its checksum."""
    schemas = (_PERTURBATION_SCHEMA, _LABEL_SCHEMA)
    columns = frame.columns.tolist()
    schema = next((each for each in schemas if each.names == columns[: len(each.names)]), None)
    if schema is not None:  # amounts of perturbations come after the columns that every store has
        schema = pa.schema([*schema, *((name, pa.float64()) for name in columns[len(schema.names) :])])
    buffer = pa.BufferOutputStream()
    pq.write_table(
        pa.Table.from_pandas(frame, schema=schema, preserve_index=False), buffer, compression="zstd"
    )
    data = buffer.getvalue().to_pybytes()
    place.write_bytes(data)
    return sha256(data)
