"""Runs inside the environment of ``annbatch_env.py``: shuffle a screen into a collection, then time batches.

The collection and the loader have annbatch's defaults, except for batches of 64 shuffled cells.

    python benchmarks/annbatch_run.py SCREEN.h5ad COLLECTION.zarr ROUNDS
"""

import json
import sys
import time
import warnings
from pathlib import Path

import anndata as ad
import zarr
from annbatch import DatasetCollection, Loader


def main(screen: str, place: str, rounds: int) -> None:
    zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})
    warnings.simplefilter("ignore")
    if not Path(place).exists():
        partial = place + ".partial"
        DatasetCollection(partial).add_adatas([screen])
        Path(partial).rename(place)
    best = None
    for _ in range(rounds):
        start, cpu = time.perf_counter(), time.process_time()
        loader = Loader(batch_size=64, shuffle=True, to=None).use_collection(
            DatasetCollection(place, mode="r"),
            load_adata=lambda group: ad.AnnData(X=ad.io.sparse_dataset(group["X"])),
        )
        first, cells, tokens = 0.0, 0, 0
        for batch in loader:
            first = first or time.perf_counter() - start
            X = batch["X"]
            cells, tokens = cells + X.shape[0], tokens + X.nnz
        seconds = time.perf_counter() - start
        rate = {"cells": cells, "tokens": tokens, "first": first, "seconds": seconds}
        rate["cpu"] = time.process_time() - cpu
        if best is None or cells / seconds > best["cells"] / best["seconds"]:
            best = rate
    print(json.dumps(best))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
