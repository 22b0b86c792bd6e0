"""``tadvae inspect``: describe the contents of a store."""

from typing import Any

import numpy as np
from rich.table import Table

from tadvae.genes.features import listed
from tadvae.store.reader import Store

MOST_SHOWN = 12
"""Values of a covariate that are shown."""


def describe(path: str, *, verify: bool = False) -> dict[str, Any]:
    """Datasets, contexts, perturbations, cells, genes and overlaps of a store, as plain values.

    Parameters
    ----------
    verify
        Whether to read every file, and compare it with its checksum and with the others; a difference is a
        UserError.
    """
    store = Store.open(path)
    if verify:
        store.verify_tables()
        for shard in range(len(store.manifest.shards)):
            store.verify(shard, tokens=True)
    names = store.perturbations["name"].to_numpy()
    panels = [store.panel(i) for i in range(len(store.manifest.datasets))]
    genes = [set(panel["gene_index"]) for panel in panels]
    datasets = []
    for i, entry in enumerate(store.manifest.datasets):
        groups = store.groups[store.groups["dataset"] == i]
        if entry.kind == "signatures":  # the empty rows of its controls are no rows of the file
            groups = groups[groups["perturbation"] != store.control]
        cells = groups["n_cells"].groupby(names[groups["perturbation"]]).sum()  # names may repeat
        shards = [shard for shard in store.manifest.shards if shard.dataset == i]
        by_context = groups.groupby("context")["n_cells"].sum()
        datasets.append(
            {
                "name": entry.name,
                "source": entry.source,
                "kind": entry.kind,
                "values": entry.values,
                "rounded": entry.rounded,
                "left_out": entry.left_out,
                "dropped": entry.dropped,
                "covariates": entry.covariates,
                "n_cells": int(groups["n_cells"].sum()),
                "n_genes": entry.n_genes,
                "n_tokens": sum(shard.tokens for shard in shards),
                "bytes": sum(shard.size for shard in shards),
                "contexts": {store.manifest.contexts[c]: int(n) for c, n in by_context.items()},
                "perturbations": {str(name): int(n) for name, n in cells.items()},
                "genes_matched_by": {str(k): int(v) for k, v in panels[i]["how"].value_counts().items()},
                "unknown_genes": panels[i]["source"][panels[i]["how"] == "unknown"].tolist(),
            }
        )
    return {
        "store": str(store.folder),
        "schema_version": store.manifest.schema_version,
        "vocabulary_hash": store.manifest.vocabulary_hash,
        "n_cells": sum(d["n_cells"] for d in datasets),
        "n_genes": store.manifest.n_genes,
        "n_bags": len(store.bags),
        "datasets": datasets,
        "shared_genes": [[len(a & b) for b in genes] for a in genes],
        "shared_perturbations": _shared([set(d["perturbations"]) - {"control"} for d in datasets]),
    }


def as_tables(about: dict[str, Any]) -> list[Table]:
    """The description as tables for the terminal."""
    top = Table(
        title=f"{about['store']}: {about['n_cells']:,} cells, {about['n_genes']:,} genes, "
        f"{about['n_bags']:,} bags, vocabulary {about['vocabulary_hash']}",
        title_justify="left",
    )
    for name in (
        "dataset",
        "kind",
        "values",
        "cells",
        "genes",
        "unknown genes",
        "tokens/cell",
        "contexts",
        "perturbations",
    ):
        words = ("dataset", "kind", "values", "contexts")
        top.add_column(name, justify="left" if name in words else "right")
    for d in about["datasets"]:
        perturbations = len(set(d["perturbations"]) - {"control"})
        top.add_row(
            d["name"],
            d["kind"],
            d["values"] + (", rounded" if d["rounded"] else ""),
            f"{d['n_cells']:,}",
            f"{d['n_genes']:,}",
            f"{len(d['unknown_genes']):,}",
            f"{d['n_tokens'] / max(d['n_cells'], 1):,.0f}",
            ", ".join(d["contexts"]),
            str(perturbations),
        )
    left_out = [f"{d['name']}: {listed(d['left_out'])}" for d in about["datasets"] if d["left_out"]]
    dropped = [f"{d['name']}: {listed(d['dropped'])}" for d in about["datasets"] if d["dropped"]]
    notes = [f"columns that are not genes were left out: {'; '.join(left_out)}"] if left_out else []
    notes += [f"cells were left out by 'qc': {'; '.join(dropped)}"] if dropped else []
    if notes:
        top.caption = "\n".join(notes)
        top.caption_justify = "left"
    tables = [top]
    names = [d["name"] for d in about["datasets"]]
    if len(names) > 1:
        for key, title in (
            ("shared_genes", "genes in common"),
            ("shared_perturbations", "perturbations in common"),
        ):
            table = Table(title=title, title_justify="left")
            table.add_column("")
            for name in names:
                table.add_column(name, justify="right")
            for name, row in zip(names, about[key], strict=True):
                table.add_row(name, *[f"{value:,}" for value in row])
            tables.append(table)
    covariates = Table(title="covariates", title_justify="left")
    for name in ("dataset", "covariate", "values"):
        covariates.add_column(name)
    for d in about["datasets"]:
        for name, values in d["covariates"].items():
            more = f", … ({len(values)} in all)" if len(values) > MOST_SHOWN else ""
            covariates.add_row(d["name"], name, ", ".join(values[:MOST_SHOWN]) + more)
    if covariates.row_count:
        tables.append(covariates)
    for d in about["datasets"]:
        tables.append(_perturbations(d))
    return tables


def _perturbations(dataset: dict[str, Any], most: int = 12) -> Table:
    cells = dataset["perturbations"]
    table = Table(title=f"{dataset['name']}: {dataset['kind']} by perturbation", title_justify="left")
    table.add_column("perturbation")
    table.add_column(dataset["kind"], justify="right")
    ordered = sorted(cells.items(), key=lambda item: (item[0] != "control", -item[1], item[0]))
    for name, n in ordered[:most]:
        table.add_row(name, f"{n:,}")
    if len(ordered) > most:
        table.add_row(f"… and {len(ordered) - most} more", f"{sum(n for _, n in ordered[most:]):,}")
    return table


def _shared(sets: list[set[str]]) -> list[list[int]]:
    return np.array([[len(a & b) for b in sets] for a in sets]).tolist()
