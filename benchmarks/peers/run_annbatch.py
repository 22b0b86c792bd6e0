"""annbatch on its shuffled collection of the same cells, with its defaults; batches of 64 cells.

python run_annbatch.py CASE OUT
"""

# /// script
# requires-python = ">=3.12"
# dependencies = ["annbatch[zarrs]==0.3.1", "anndata==0.13.4", "numpy==2.5.5", "scipy==1.18.1", "zarr==3.4.2"]
# [tool.tadvae-peer]
# python = "3.12"
# job = "loading"
# ///

import sys
import warnings
from pathlib import Path

import anndata as ad
import zarr
from annbatch import DatasetCollection, Loader
from loading_case import BATCH, measure
from scipy import sparse


def main(case: Path, out: Path) -> None:
    zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline", "threading.max_workers": 1})
    warnings.simplefilter("ignore")
    place = out / "collection.zarr"
    if not place.exists():
        partial = out / "collection.zarr.partial"
        DatasetCollection(str(partial)).add_adatas([str(case / "cells.h5ad")])
        partial.rename(place)
    loader = Loader(batch_size=BATCH, shuffle=True, to=None).use_collection(
        DatasetCollection(str(place), mode="r"),
        load_adata=lambda group: ad.AnnData(X=ad.io.sparse_dataset(group["X"])),
    )
    measure((sparse.csr_matrix(batch["X"]) for batch in loader), out, place)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve())
