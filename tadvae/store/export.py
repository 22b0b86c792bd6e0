"""Write the datasets of a store as ``.h5ad`` files that other programs read, and a spec that reads them back.

``obs`` has the columns of GEARS (``condition``: ``ctrl``, ``A+ctrl``, ``A+B``; ``cell_type``) and ``var`` its
``gene_name``; State and pertpy are told the names of the columns. ``X`` is log1p of counts per ten thousand,
and the counts are a layer. A dataset is read and written one row group at a time.
"""

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import yaml
from anndata.io import sparse_dataset, write_elem
from scipy import sparse

from tadvae.base.errors import UserError
from tadvae.base.filesystem import Location
from tadvae.base.labels import split_label
from tadvae.store.covariates import AMOUNTS
from tadvae.store.h5ad import written_locally
from tadvae.store.reader import Store
from tadvae.store.tokens import COLUMNS, unpack_tokens

CONTROL = "ctrl"
SEPARATORS = ("+", "|", ";", "&", ",")
"""Between the targets of a label; the first, which GEARS reads, unless it is part of a target's name."""
TARGET_SUM = 1e4
LAYER = "counts"


def export(store: Store, folder: Location) -> list[Location]:
    """Write one file per dataset, and at last ``spec.yaml``, into a new or empty folder.

    Signatures have no cells, and are left out.

    Raises
    ------
    UserError
        If the folder holds anything, cannot be written, or the store is damaged; or if names of targets
        leave no separator for labels.
    """
    if folder.names():
        raise UserError(f"{folder}: expected a new or empty folder, found files; give another one.")
    entries = store.manifest.datasets
    chosen = [i for i, entry in enumerate(entries) if entry.kind != "signatures"]
    if not chosen:
        raise UserError(f"{store.folder}: holds signatures only, which have no cells to write.")
    separator = _separator(store)
    folder.make_folder()
    places = [folder / f"{entries[dataset].name}.h5ad" for dataset in chosen]
    try:
        for dataset, place in zip(chosen, places, strict=True):
            with written_locally(place) as local:
                _write_dataset(store, dataset, separator, Path(local))
        _write_spec(store, chosen, separator, folder)
    except BaseException:
        for place in places:  # half of a store is none
            place.delete()
        raise
    return places


def _write_spec(store: Store, chosen: list[int], separator: str, folder: Location) -> None:
    reference = store.reference
    if reference == "own":
        reference = "genes.tsv"
        names = store.genes[["ensembl_id", "symbol"]].fillna("")
        (folder / reference).write_text(names.to_csv(sep="\t", index=False))
    spec = {
        "genes": {"reference": reference},
        "datasets": [_spec_of(store, dataset, separator) for dataset in chosen],
    }
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec, sort_keys=False, allow_unicode=True))


def _write_dataset(store: Store, dataset: int, separator: str, place: Path) -> None:
    entry, panel = store.manifest.datasets[dataset], store.panel(dataset)
    obs = _obs(store, dataset, separator)
    with h5py.File(place, "w") as file:
        write_elem(file, "/", ad.AnnData(obs=obs, var=_var(panel, store)))
        empty = sparse.csr_matrix((0, len(panel)), dtype=np.float32)
        options = {"compression": "gzip"}
        write_elem(file, "X", empty, dataset_kwargs=options)
        if entry.values == "counts":
            write_elem(file, f"layers/{LAYER}", empty, dataset_kwargs=options)
        column = np.full(store.manifest.n_genes, -1)
        column[panel["gene_index"]] = np.arange(len(panel))
        at = 0
        for table, _ in _parts(store, dataset, COLUMNS):
            ids, values, offsets = unpack_tokens(table, store.manifest.n_genes)
            shape = len(offsets) - 1, len(panel)
            X = sparse.csr_matrix((values.astype(np.float32), column[ids], offsets), shape)
            if entry.values == "counts":
                sparse_dataset(file[f"layers/{LAYER}"]).append(X)
                total = obs["total_counts"].to_numpy()[at : at + shape[0]]
                X = sparse.diags(TARGET_SUM / np.maximum(total, 1)) @ X
                X = sparse.csr_matrix(X.log1p(), dtype=np.float32)
            sparse_dataset(file["X"]).append(X)
            at += shape[0]


def _obs(store: Store, dataset: int, separator: str) -> pd.DataFrame:
    """Names of the cells in stored order, and what is known of them."""
    entry = store.manifest.datasets[dataset]
    perturbations, bags = store.perturbations, store.bags
    names = np.array([_condition(tuple(targets), separator) for targets in perturbations["targets"]])
    free = [name for name in entry.covariates if name not in AMOUNTS]
    columns = ["cell_id", "batch", "total_counts", *(f"covariate_{name}" for name in free)]
    frames = []
    for table, bag in _parts(store, dataset, columns):
        own = bags.loc[bag, "perturbation"].to_numpy()
        frame = table.to_pandas().rename(columns={f"covariate_{name}": name for name in free})
        frame["condition"] = names[own]
        frame["cell_type"] = np.array(store.manifest.contexts)[bags.loc[bag, "context"].to_numpy()]
        for name in AMOUNTS:
            if name in entry.covariates:
                frame[name] = perturbations[name].to_numpy()[own]
        frames.append(frame)
    obs = pd.concat(frames, ignore_index=True).set_index("cell_id")
    if entry.values != "counts":
        obs = obs.drop(columns="total_counts")
    obs = obs.dropna(axis=1, how="all")
    return obs.astype({name: "category" for name in obs if not pd.api.types.is_numeric_dtype(obs[name])})


def _separator(store: Store) -> str:
    names = set(chain.from_iterable(store.perturbations["targets"]))
    for separator in SEPARATORS:
        if all(split_label(name, separator) == [name] for name in names):
            return separator
    raise UserError(
        f"{store.folder}: expected one of {' '.join(SEPARATORS)} in no target's name, to separate targets; "
        "rename some and convert again."
    )


def _condition(targets: tuple[str, ...], separator: str) -> str:
    """The label of GEARS."""
    return CONTROL if not targets else separator.join(targets if len(targets) > 1 else (*targets, CONTROL))


def _var(panel: pd.DataFrame, store: Store) -> pd.DataFrame:
    genes = store.genes.iloc[panel["gene_index"]]
    names = genes["symbol"].to_numpy(object)
    known = pd.notna(names)
    var = pd.DataFrame(
        {"gene_name": np.where(known, names, panel["var_name"]), "gene": panel["gene"].to_numpy()},
        index=pd.Index(panel["var_name"].to_numpy(), name=None),
    )
    return var.astype(str)


def _parts(store: Store, dataset: int, columns: Sequence[str]) -> Iterator[tuple[pa.Table, np.ndarray]]:
    """Row groups of a dataset in stored order, and the bag of each row."""
    bags = store.bags[store.bags["dataset"] == dataset]
    for shard, row_group, ids in store.row_groups(bags):
        yield store.read_bags(shard, row_group, ids, columns)


def _spec_of(store: Store, dataset: int, separator: str) -> dict[str, object]:
    """What the columns of a dataset's file mean."""
    entry, given = store.manifest.datasets[dataset], store.spec.datasets[dataset]
    spec: dict[str, object] = {
        "name": entry.name,
        "path": f"{entry.name}.h5ad",
        "kind": entry.kind,
        "values": entry.values,
        "perturbation": {"column": "condition", "control": CONTROL, "separator": separator},
        "context": {"column": "cell_type"},
        "modality": given.modality,
        "genes": {"column": "gene"},
    }
    if entry.values == "counts":
        spec |= {"counts": LAYER}
    if entry.has_total_counts:
        spec |= {"total_counts": "total_counts"}
    if given.batch is not None:
        spec |= {"batch": "batch"}
    if entry.covariates:
        units = {name: each.unit for name, each in given.covariates.items()}
        spec["covariates"] = {
            name: {"column": name} | ({"unit": units[name]} if units.get(name) else {})
            for name in entry.covariates
        }
    return spec
