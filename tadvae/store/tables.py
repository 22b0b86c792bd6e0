"""Write everything that a store holds besides its cells: genes, panels, bags, perturbations and labels."""

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
from tadvae.store.conversion import Perturbation, StorePlan, with_modality
from tadvae.store.covariates import AMOUNTS, MOST_LABELS, Amounts, amounts_text
from tadvae.store.guides import guide_table
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
from tadvae.store.spec import modality_sign
from tadvae.store.writer import DatasetPlan, perturbation_label


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
            code_of[with_modality(targets, each.spec), amounts]
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
            code_of[with_modality(targets, dataset.spec), amounts]
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
