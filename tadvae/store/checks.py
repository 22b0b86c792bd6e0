"""What the files of a store say about each other, compared before any of it is used.

Each function raises a ValueError that says what is wrong; :class:`tadvae.store.reader.Store` adds the file.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from tadvae.base.errors import require
from tadvae.store.covariates import AMOUNTS
from tadvae.store.manifest import GROUP_KEYS, Manifest, ShardEntry, StoredDataset
from tadvae.store.tokens import ENCODINGS, encoding

SHARD_COLUMNS = ("context", "perturbation", "total_counts", "n_tokens")
"""Columns of a shard that are compared with the table of bags."""
_LISTS = ("targets", "target_genes", "modalities", "signs")


def check_genes(genes: pd.DataFrame, manifest: Manifest) -> None:
    """One row per gene of the vocabulary, numbered from 0, each with its own key."""
    index = _whole(genes, "gene_index")
    require(len(genes) == manifest.n_genes, f"{len(genes)} genes instead of {manifest.n_genes}")
    require((index == np.arange(len(genes))).all(), "gene_index does not count from 0")
    require("gene" in genes and not genes["gene"].isna().any() and genes["gene"].is_unique, "repeated genes")
    require({"ensembl_id", "symbol"} <= set(genes.columns), "no column ensembl_id or symbol")


def check_panel(panel: pd.DataFrame, genes: pd.DataFrame, entry: StoredDataset) -> None:
    """Measured genes of a dataset: sorted, from the vocabulary, with finite moments."""
    index = _whole(panel, "gene_index", len(genes))
    require(len(panel) == entry.n_genes, f"{len(panel)} genes instead of {entry.n_genes}")
    require((np.diff(index) > 0).all(), "gene_index is not sorted")
    require({"source", "gene", "how", "length"} <= set(panel.columns), "a column is missing")
    require((genes["gene"].to_numpy()[index] == panel["gene"].to_numpy()).all(), "genes of another store")
    for name in ("mean", "variance", "detection"):
        values = panel[name].to_numpy(np.float64) if name in panel else np.array([np.nan])
        least = -np.inf if (name, entry.values) == ("mean", "effects") else 0.0
        require(bool((np.isfinite(values) & (values >= least)).all()), f"{name} is negative or not finite")


def check_perturbations(table: pd.DataFrame, n_genes: int) -> None:
    """One row per perturbation, with as many targets as genes, modalities and signs of them."""
    index = _whole(table, "perturbation_index")
    require((index == np.arange(len(table))).all(), "perturbation_index does not count from 0")
    require({"name", "n_cells", *_LISTS} <= set(table.columns), "a column is missing")
    require(all(isinstance(name, str) for name in table["name"]), "a perturbation has no name")
    for row in table[list(_LISTS)].itertuples(index=False):
        sizes = {len(part) if isinstance(part, np.ndarray) else -1 for part in row}
        require(len(sizes) == 1 and sizes != {-1}, "lists of targets, genes, modalities or signs differ")
    genes, signs = (_flat(table[name]) for name in ("target_genes", "signs"))
    require(bool(((genes >= -1) & (genes < n_genes)).all()), "a target is a gene beyond the vocabulary")
    require(bool((np.abs(signs) <= 1).all()), "a sign is neither -1, 0 nor 1")
    require((table["targets"].str.len() == 0).sum() <= 1, "there are two controls")
    for name in AMOUNTS:
        if name in table:
            amounts = table[name].to_numpy(np.float64)
            require(
                bool((np.isnan(amounts) | (np.isfinite(amounts) & (amounts > 0))).all()), f"a {name} below 0"
            )


def check_labels(table: pd.DataFrame, n_datasets: int) -> None:
    """Labels of datasets, each with the names of its targets."""
    _whole(table, "dataset", n_datasets)
    require({"label", "targets"} <= set(table.columns), "a column is missing")
    require(all(isinstance(label, str) for label in table["label"]), "a label is no text")
    lists = all(
        isinstance(item, np.ndarray) and all(isinstance(t, str) for t in item) for item in table["targets"]
    )
    require(lists, "the targets of a label are no list of names")


def check_guides(table: pd.DataFrame, groups: pd.DataFrame) -> None:
    """Cells by guide belong to groups of the store, and are no more than these have."""
    for name in (*GROUP_KEYS, "n_cells"):
        _whole(table, name)
    whole = "n_guides" in table and table["n_guides"].dtype.kind in "iu"  # -1: not known
    require(whole, "n_guides does not hold whole numbers")
    require("guide" in table and all(isinstance(each, str) for each in table["guide"]), "a guide is no text")
    counted = table.groupby(GROUP_KEYS)["n_cells"].sum()
    known = groups.set_index(GROUP_KEYS)["n_cells"].reindex(counted.index)
    require(bool((counted <= known).all()), "its cells are not those of the groups")


def check_bags(bags: pd.DataFrame, manifest: Manifest, n_perturbations: int) -> None:
    """Bags that follow each other in row groups, and fill the shards of the manifest."""
    limits = (len(manifest.datasets), len(manifest.contexts), n_perturbations)
    for name, limit in zip(GROUP_KEYS, limits, strict=True):
        _whole(bags, name, limit)
    shard = _whole(bags, "shard", len(manifest.shards))
    n_cells, first, _ = (_whole(bags, name) for name in ("n_cells", "first_row", "row_group"))
    n_tokens = _whole(bags, "n_tokens")
    require(bool((n_cells >= 1).all()), "a bag without cells")
    before = bags.groupby(["shard", "row_group"])["n_cells"].cumsum().to_numpy() - n_cells
    require((first == before).all(), "first_row is not where the bag before ends")
    for what, values in (("rows", n_cells), ("tokens", n_tokens)):
        found = np.zeros(len(manifest.shards), np.int64)
        np.add.at(found, shard, values)
        expected = [getattr(entry, what) for entry in manifest.shards]
        require(found.tolist() == expected, f"the bags of a shard do not add up to its {what}")
    of_shard = np.array([entry.dataset for entry in manifest.shards], np.int64)
    require((of_shard[shard] == bags["dataset"].to_numpy()).all(), "a bag is in a shard of another dataset")


def check_groups(perturbations: pd.DataFrame, groups: pd.DataFrame, manifest: Manifest) -> None:
    """The table of perturbations counts the cells that the bags hold, and so do the datasets."""
    listed = {
        (part["dataset"], part["context"], row.perturbation_index): part["n_cells"]
        for row in perturbations[["perturbation_index", "n_cells"]].itertuples()
        for part in row.n_cells
    }
    rows = groups[[*GROUP_KEYS, "n_cells"]].itertuples(index=False, name=None)
    require(listed == {tuple(keys): n for *keys, n in rows}, "n_cells is not what the bags hold")
    size = perturbations["targets"].str.len().to_numpy()
    for i, entry in enumerate(manifest.datasets):
        part = groups[groups["dataset"] == i]
        contexts = {manifest.contexts[c] for c in part["context"]}
        perturbed = part["perturbation"][size[part["perturbation"].to_numpy()] > 0].nunique()
        agrees = contexts == set(entry.contexts) and perturbed == entry.n_perturbations
        require(agrees, f"contexts or perturbations of dataset '{entry.name}' are not those of the manifest")


def check_shard_size(n_rows: int, n_row_groups: int, entry: ShardEntry, bags: pd.DataFrame) -> None:
    """A shard has the rows and the row groups of its bags."""
    require(n_rows == entry.rows, f"{n_rows} cells instead of {entry.rows}")
    expected = int(bags["row_group"].max()) + 1 if len(bags) else 0
    require(n_row_groups == expected, f"{n_row_groups} row groups instead of {expected}")


def check_columns(table: pa.Table, columns: Sequence[str]) -> None:
    """A part of a shard has the columns that were asked for."""
    missing = sorted(set(columns) - set(table.column_names))
    require(not missing, f"no column {', '.join(missing)}")


def check_measured(gene_ids: np.ndarray, measured: np.ndarray) -> None:
    """Expressed genes are genes that the dataset measures."""
    require(bool(measured[gene_ids].all()), "gene_ids names a gene that the dataset does not measure")


def check_encoding(table: pa.Table, entry: StoredDataset) -> None:
    """Values of a shard are encoded as those of its dataset, so that only effects are negative."""
    require(encoding(table) == ENCODINGS[entry.values], f"counts are not encoded as {entry.values}")


def check_tokens_of_bags(table: pa.Table, n_cells: np.ndarray, n_tokens: np.ndarray) -> None:
    """Rows of some bags have as many tokens as the table of bags says."""
    column = table["n_tokens"]
    require(column.type == pa.int32() and not column.null_count, "n_tokens does not hold numbers")
    starts = np.concatenate([[0], np.cumsum(n_cells)])
    require(table.num_rows == starts[-1], f"{table.num_rows} cells instead of {starts[-1]}")
    if len(n_cells):
        found = np.add.reduceat(column.to_numpy().astype(np.int64), starts[:-1])
        require((found == n_tokens).all(), "the cells are not those that bags.parquet lists")


def check_row_group(
    table: pa.Table, bags: pd.DataFrame, contexts: list[str], perturbations: np.ndarray
) -> None:
    """The labels, tokens and totals of a row group are those of its bags.

    Parameters
    ----------
    table
        The row group, with at least :data:`SHARD_COLUMNS`.
    bags
        Its bags, in their order.
    contexts, perturbations
        Names by index.
    """
    n_cells = bags["n_cells"].to_numpy()
    check_tokens_of_bags(table, n_cells, bags["n_tokens"].to_numpy())
    for column, names in (("context", np.array(contexts, object)), ("perturbation", perturbations)):
        expected = pa.array(np.repeat(names[bags[column].to_numpy()], n_cells), pa.string())
        found = table[column].cast(pa.string())
        same = pc.all(pc.fill_null(pc.equal(found, expected), False)).as_py()
        require(bool(same), f"{column} is not what bags.parquet says")
    total = table["total_counts"].to_numpy().astype(np.float64)
    require(bool((np.isfinite(total) & (total >= 0)).all()), "total_counts is negative or not finite")


def _whole(table: pd.DataFrame, name: str, limit: int | None = None) -> np.ndarray:
    """A column of whole numbers from 0 and, where there is a limit, below it."""
    require(name in table and table[name].dtype.kind in "iu", f"{name} does not hold whole numbers")
    values: np.ndarray = table[name].to_numpy(np.int64)
    inside = (values >= 0) if limit is None else (values >= 0) & (values < limit)
    require(bool(inside.all()), f"{name} is out of range")
    return values


def _flat(lists: pd.Series) -> np.ndarray:
    return np.concatenate([np.empty(0, np.int64), *lists])
