"""cell-load, the loader of State, on an uncompressed copy of the file: all genes, sets of 64 cells.

Every cell comes with a control cell of its kind, as State trains; as with ours, those count as tokens and not
as cells. Its rows are dense.

    python run_cell_load.py CASE OUT
"""

# /// script
# requires-python = ">=3.11"
# dependencies = ["cell-load==0.10.4", "torch==2.13.0", "anndata==0.12.19", "numpy==2.4.6", "scipy==1.17.1"]
# [tool.tadvae-peer]
# python = "3.11"
# job = "loading"
# ///

import sys
from collections.abc import Iterator
from pathlib import Path

import anndata as ad
import torch
from cell_load.data_modules import PerturbationDataModule
from loading_case import BATCH, measure
from scipy import sparse


def main(case: Path, out: Path) -> None:
    torch.set_num_threads(1)
    folder = out / "screen"
    if not folder.exists():
        partial = out / "screen.partial"
        partial.mkdir(exist_ok=True)
        adata = ad.read_h5ad(case / "cells.h5ad")
        obs = adata.obs[["condition", "line"]].assign(batch="one").astype(str).astype("category")
        ad.AnnData(sparse.csr_matrix(adata.X), obs, adata.var[[]]).write_h5ad(partial / "screen.h5ad")
        partial.rename(folder)
    split = f'[datasets]\nscreen = "{folder}"\n[training]\nscreen = "train"\n[zeroshot]\n[fewshot]\n'
    (out / "split.toml").write_text(split)
    module = PerturbationDataModule(
        str(out / "split.toml"), batch_size=1, num_workers=0, pert_col="condition", batch_col="batch",
        cell_type_key="line", control_pert="control", output_space="all", cell_sentence_len=BATCH,
        pin_memory=False,
    )  # fmt: skip
    module.setup(stage="fit")

    def batches() -> Iterator[sparse.csr_matrix]:
        for batch in module.train_dataloader():
            cells = torch.cat([batch["pert_cell_emb"], batch["ctrl_cell_emb"]])
            yield sparse.csr_matrix(cells.numpy())

    measure(batches(), out, folder, controls=0.5)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve())
