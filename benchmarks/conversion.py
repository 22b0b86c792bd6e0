"""Conversion into a store, compared with a plain script: scanpy.read_h5ad, then pyarrow.

Our conversion streams: it never loads the whole file, it checks every value, harmonises genes, shuffles
cells into bags and computes moments. The plain script reads the whole file, cuts it into row groups and
writes lists of gene ids and counts with pyarrow's defaults and zstd: no checks, no shuffle, no bags. Both
run on one core (ours: one Ray task at a time) on the same file in the same run, alternately; the start of
Ray is not counted. Ours is also run on all cores. The cells are the real PBMC cells, repeated, and
synthetic cells.

    python benchmarks/conversion.py [--json FILE] [--folder FOLDER] [--quick]
"""

import shutil
import time
from pathlib import Path
from typing import Any

from claims import Claims, about, parse, scratch
from measure import cpu_seconds
from synthetic import PBMC, screen, write_spec

from pipelines.cluster.connection import ray_session
from pipelines.convert import convert
from tadvae.store.reader import Store

ROWS = 1024


def plain(path: Path, out: Path) -> None:
    """The plain script."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import scanpy as sc

    adata = sc.read_h5ad(path)
    writer = None
    X, obs = adata.X, adata.obs.astype(str)
    for start in range(0, adata.n_obs, ROWS):
        rows = slice(start, start + ROWS)
        part = X[rows]
        lists = {
            name: pa.ListArray.from_arrays(pa.array(part.indptr.astype("int32")), pa.array(values))
            for name, values in (("gene_ids", part.indices), ("counts", part.data))
        }
        columns = {name: pa.array(obs[name].iloc[rows]) for name in obs.columns}
        table = pa.table({"cell_id": pa.array(obs.index[rows]), **columns, **lists})
        writer = writer or pq.ParquetWriter(out, table.schema, compression="zstd")
        writer.write_table(table)
    assert writer is not None
    writer.close()


def ours(path: Path, folder: Path, tasks_at_once: int | None) -> tuple[Path, float]:
    """Convert; returns the store and the CPU seconds."""
    store = folder / f"{path.stem}-store"
    shutil.rmtree(store, ignore_errors=True)
    before = cpu_seconds()
    convert(str(write_spec(folder, [path])), str(store), tasks_at_once)
    return store, cpu_seconds() - before


def compare(path: Path, n_cells: int, folder: Path, rounds: int) -> dict[str, Any]:
    """Rates of both, the best of several alternating rounds."""
    best = {"ours": float("inf"), "plain": float("inf"), "all": float("inf")}
    for _ in range(rounds):
        start = time.perf_counter()
        ours(path, folder, 1)
        best["ours"] = min(best["ours"], time.perf_counter() - start)
        start = time.perf_counter()
        plain(path, folder / "plain.parquet")
        best["plain"] = min(best["plain"], time.perf_counter() - start)
    start = time.perf_counter()
    store, cpu = ours(path, folder, None)
    best["all"] = time.perf_counter() - start
    manifest = Store.open(str(store)).manifest
    tokens = sum(shard.tokens for shard in manifest.shards)
    return {
        "cells": path.stem,
        "n": n_cells,
        "non-zeros per cell": tokens / n_cells,
        "ours, cells/s on one core": n_cells / best["ours"],
        "plain, cells/s on one core": n_cells / best["plain"],
        "ours, cells/s on all cores": n_cells / best["all"],
        "ours, cells per CPU second": n_cells / cpu,
        "ours, bytes per non-zero": sum(shard.size for shard in manifest.shards) / tokens,
        "plain, bytes per non-zero": (folder / "plain.parquet").stat().st_size / tokens,
    }


def main() -> None:
    options = parse(__doc__)
    claims = Claims("conversion", about(__doc__))
    rows = []
    with scratch(options) as folder, ray_session():
        for kind in ["cells", *(["pbmc"] if PBMC.exists() else [])]:
            n_cells = 1_000 if options.quick else 30_000
            path = screen(folder, kind, n_cells, quick=options.quick)
            rows.append(compare(path, n_cells, folder, 1 if options.quick else 2))
        (folder / "plain.parquet").unlink()
    claims.table("Rates and sizes", rows)
    for row in rows:
        ratio = row["ours, cells/s on one core"] / row["plain, cells/s on one core"]
        claims.aim(f"{row['cells']}: cells/s on one core, ours over plain", ratio, at_least=1)
        csr = 8.0  # int32 and float32
        claims.aim(
            f"{row['cells']}: bytes per non-zero, ours over CSR",
            row["ours, bytes per non-zero"] / csr,
            at_most=0.5,
        )
    for name in ("non-zeros per cell", "ours, cells per CPU second", "ours, bytes per non-zero"):
        claims.figure(name, rows[0][name])
    claims.finish(options)


if __name__ == "__main__":
    main()
