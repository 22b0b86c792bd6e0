"""Realistic screens for the benchmarks: any number of synthetic cells, and the real PBMC cells, repeated.

Everything is written to a folder that the caller deletes. Files are written a few thousand cells at a time,
so that making them takes little memory.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import anndata as ad
import h5py
import numba
import numpy as np
import pandas as pd
import yaml
from anndata.io import write_elem
from scipy import sparse

from pipelines.convert import convert

DATA = Path(os.environ.get("TADVAE_DATA", Path(__file__).parents[2] / "shared" / "data"))
PBMC = DATA / "cells" / "pbmc4k_10x.h5ad"

TARGETS = 100
CONTROL_SHARE = 0.1
CHUNK = 4096


def make_screen(
    path: Path,
    n_cells: int,
    n_genes: int = 20_000,
    expressed: int = 1_500,
    n_targets: int = TARGETS,
    seed: int = 0,
) -> None:
    """Write a screen of synthetic cells.

    Genes have log-normal abundances and cells log-normal depths, such that a cell expresses about
    ``expressed`` genes, most of them with a count of one. A tenth of the cells are controls.
    """
    rng = np.random.default_rng(seed)
    share = np.exp(rng.normal(0.0, 1.7, n_genes))
    share /= share.sum()
    depth = _depth(share, expressed)
    table = np.cumsum(share)
    table[-1] = 1.0

    def chunks() -> Iterator[sparse.csr_matrix]:
        for start in range(0, n_cells, CHUNK):
            n = min(CHUNK, n_cells - start)
            library = np.maximum(depth * np.exp(rng.normal(0.0, 0.3, n)), 20).astype(np.int64)
            ids, counts, offsets = _draw(table, library, seed * 1_000_003 + start)
            yield sparse.csr_matrix((counts, ids, offsets), shape=(n, n_genes))

    names = [f"G{i:05d}" for i in range(n_genes)]
    _write(path, n_cells, names, names[:n_targets], chunks(), rng)


def make_tiled(path: Path, n_cells: int, seed: int = 0) -> None:
    """Write the real PBMC cells repeatedly, in a new order each time, with invented perturbations.

    The file is compressed by gzip, as the real one is and as portals publish them.
    """
    adata = ad.read_h5ad(PBMC)
    values = sparse.csr_matrix(adata.X, dtype=np.float32)
    values.sort_indices()
    rng = np.random.default_rng(seed)
    names = pd.Index(adata.var_names.astype(str))
    names = names.where(~names.duplicated(), names + "-" + pd.Index(np.arange(len(names)).astype(str)))
    common = np.argsort(-values.getnnz(axis=0))[:TARGETS]

    def chunks() -> Iterator[sparse.csr_matrix]:
        left = n_cells
        while left > 0:
            yield values[rng.permutation(len(adata))[:left]]
            left -= len(adata)

    _write(path, n_cells, names.tolist(), names[common].tolist(), chunks(), rng, compression="gzip")


def write_spec(folder: Path, screens: list[Path]) -> Path:
    """Write the converter's input for some screens of this module."""
    datasets = [
        {
            "name": screen.stem,
            "path": str(screen),
            "perturbation": {"column": "condition", "control": "control"},
            "context": {"column": "line"},
            "modality": "CRISPRi",
        }
        for screen in screens
    ]
    spec = folder / f"{screens[0].stem}.yaml"
    spec.write_text(yaml.safe_dump({"datasets": datasets, "genes": {"reference": "none"}}))
    return spec


def make_pathways(path: Path, n_genes: int, n_pathways: int, size: int = 20, seed: int = 0) -> int:
    """Write a GMT of random gene sets over the genes of :func:`make_screen`; returns its edges."""
    rng = np.random.default_rng(seed)
    with path.open("w") as file:
        for p in range(n_pathways):
            genes = rng.choice(n_genes, size, replace=False)
            file.write("\t".join([f"P{p:05d}", "synthetic", *(f"G{g:05d}" for g in genes)]) + "\n")
    return n_pathways * size


def screen(folder: Path, kind: str, n_cells: int, *, quick: bool = False) -> Path:
    """The screen ``KIND-N.h5ad`` of a folder, made if it is not there.

    ``cells`` are synthetic (20,000 genes, 1,500 expressed; a tenth of that where ``quick``), ``pbmc`` real.
    """
    path = folder / f"{kind}-{n_cells}.h5ad"
    if not path.exists():
        partial = path.with_suffix(".partial")
        if kind == "pbmc":
            make_tiled(partial, n_cells)
        elif quick:
            make_screen(partial, n_cells, 2_000, 150, n_targets=10)
        else:
            make_screen(partial, n_cells)
        partial.rename(path)
    return path


def store_of(folder: Path, screens: list[Path]) -> Path:
    """The store ``NAME-store`` of a folder with these screens, converted if it is not there."""
    store = folder / f"{screens[0].stem}-store"
    if not store.exists():
        convert(str(write_spec(folder, screens)), str(store))
    return store


def _depth(share: np.ndarray, expressed: int) -> float:
    """UMIs at which a cell expresses so many genes on average."""
    low, high = 1.0, 1e7
    for _ in range(60):
        middle = (low * high) ** 0.5
        if -np.expm1(-middle * share).sum() < expressed:
            low = middle
        else:
            high = middle
    return low


@numba.njit
def _draw(table: np.ndarray, library: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """UMIs of every cell, drawn one by one: sorted gene ids, counts, offsets."""
    np.random.seed(seed)  # noqa: NPY002 - numba has only the old generator
    n_genes = len(table)
    first = np.zeros(1 << 14, np.int32)  # where to begin to look in the table, for speed
    at = 0
    for i in range(len(first)):
        while table[at] < i / len(first):
            at += 1
        first[i] = at
    ids = np.empty(library.sum(), np.int32)
    counts = np.empty(len(ids), np.float32)
    offsets = np.zeros(len(library) + 1, np.int32)
    seen = np.zeros(n_genes, np.int32)
    n = 0
    for cell in range(len(library)):
        for _ in range(library[cell]):
            u = np.random.random()  # noqa: NPY002
            gene = first[int(u * len(first))]
            while table[gene] < u:
                gene += 1
            seen[gene] += 1
        for gene in range(n_genes):
            if seen[gene]:
                ids[n], counts[n] = gene, seen[gene]
                seen[gene] = 0
                n += 1
        offsets[cell + 1] = n
    return ids[:n].copy(), counts[:n].copy(), offsets


def _write(
    path: Path,
    n_cells: int,
    genes: list[str],
    targets: list[str],
    chunks: Iterator[sparse.csr_matrix],
    rng: np.random.Generator,
    compression: str | None = None,
) -> None:
    """Write an ``.h5ad`` with CSR ``X`` (float32, int32) as anndata does, a chunk at a time."""
    labels = np.array(["control", *targets])
    code = np.where(rng.random(n_cells) < CONTROL_SHARE, 0, rng.integers(1, len(labels), n_cells))
    code[: len(labels)] = np.arange(min(len(labels), n_cells))  # nothing is absent, however few the cells
    obs = pd.DataFrame(
        {
            "condition": pd.Categorical.from_codes(code, labels),
            "line": pd.Categorical.from_codes(rng.integers(0, 2, n_cells), ["LINE1", "LINE2"]),
        },
        index=[f"cell{i:07d}" for i in range(n_cells)],
    )
    with h5py.File(path, "w") as file:
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        write_elem(file, "obs", obs)
        write_elem(file, "var", pd.DataFrame(index=genes))
        X = file.create_group("X")
        X.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0"})
        X.attrs["shape"] = np.array([n_cells, len(genes)])
        options = {"maxshape": (None,), "chunks": (1 << 14,), "compression": compression}
        data = X.create_dataset("data", (0,), np.float32, **options)
        indices = X.create_dataset("indices", (0,), np.int32, **options)
        indptr = [np.zeros(1, np.int64)]
        for part in chunks:
            start = data.shape[0]
            for target, values in ((data, part.data), (indices, part.indices)):
                target.resize((start + part.nnz,))
                target[start:] = values
            indptr.append(part.indptr[1:].astype(np.int64) + start)
        X.create_dataset("indptr", data=np.concatenate(indptr))
