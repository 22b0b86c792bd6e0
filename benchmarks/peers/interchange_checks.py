"""What we write, read by the programs of others: run inside the environment of one of them.

    python interchange_checks.py decoupler FOLDER

``FOLDER`` has the files of :mod:`peers.interchange`. Prints one line of JSON: what worked, by check, or its
error, and the versions of the packages.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import anndata as ad
import numpy as np


def decoupler(folder: Path) -> dict:
    import decoupler as dc

    observed = ad.read_h5ad(folder / "observed.h5ad")

    def pathways() -> None:
        net = dc.pp.read_gmt(str(folder / "pathways.gmt"))
        scores, _ = dc.mt.ulm(observed.to_df(), net, tmin=3)
        assert scores.shape == (observed.n_obs, net["source"].nunique()), scores.shape
        assert np.isfinite(scores.to_numpy()).all()

    def activities() -> None:
        scores = dc.pp.get_obsm(observed, key="X_tadvae_activity")
        assert scores.n_obs == observed.n_obs
        found = dc.tl.rankby_group(scores, groupby="condition", reference="rest")
        assert len(found) > 0

    return {"ulm on the file of `tadvae pathways build`": pathways, "activities as its scores": activities}


def pertpy(folder: Path) -> dict:
    import pertpy as pt

    def distance() -> None:
        names = ("observed", "predicted")
        both = ad.concat({name: ad.read_h5ad(folder / f"{name}.h5ad") for name in names}, label="cells")
        both.obsm["X_log"] = np.asarray(both.X)
        found = pt.tl.Distance("edistance", obsm_key="X_log").pairwise(both, groupby="cells")
        assert np.isfinite(found.to_numpy()).all(), found

    return {"energy distance of observed and predicted cells": distance}


def expimap(folder: Path) -> dict:
    import scvi

    def setup() -> None:
        counts = ad.read_h5ad(folder / "counts.h5ad")
        scvi.model.SCVI.setup_anndata(counts)
        model = scvi.model.SCVI(counts, n_latent=2, n_hidden=8)
        model.train(max_epochs=1, accelerator="cpu", enable_progress_bar=False)
        assert np.isfinite(model.get_latent_representation()).all()

    return {"scvi-tools trains on cells of `predict --as counts`": setup}


def gears(folder: Path) -> dict:
    def neighbours() -> None:
        import scanpy as sc

        observed = ad.read_h5ad(folder / "observed.h5ad")
        sc.pp.neighbors(observed, use_rep="X_tadvae", n_neighbors=5)
        assert observed.obsp["connectivities"].shape[0] == observed.n_obs

    def process() -> None:
        import pickle

        import pandas as pd
        from gears import PertData

        pd.Series.nonzero = lambda self: self.to_numpy().nonzero()  # see run_gears.py
        adata = ad.read_h5ad(folder / "export" / "screen_a.h5ad")
        work = folder / "gears"
        work.mkdir(exist_ok=True)
        genes = adata.var["gene_name"].tolist()
        for name, what in (("gene2go_all.pkl", {gene: {"GO:1"} for gene in genes}), ("genes.pkl", genes)):
            with (work / name).open("wb") as file:
                pickle.dump(what, file)
        data = PertData(str(work), gene_set_path=str(work / "genes.pkl"), default_pert_graph=False)
        data.new_data_process("screen", adata)
        assert set(data.dataset_processed) == set(adata.obs["condition"])

    return {
        "scanpy finds neighbours in the latent space": neighbours,
        "GEARS makes its graphs of a file of `tadvae datasets export`": process,
    }


def cell_load(folder: Path) -> dict:
    from cell_load.data_modules import PerturbationDataModule

    def read() -> None:
        (folder / "split.toml").write_text(
            f'[datasets]\nscreen = "{folder}/export"\n[training]\nscreen = "train"\n[zeroshot]\n[fewshot]\n'
        )
        module = PerturbationDataModule(
            str(folder / "split.toml"), batch_size=1, num_workers=0, pert_col="condition", batch_col="batch",
            cell_type_key="cell_type", control_pert="ctrl", output_space="all", cell_sentence_len=8,
            pin_memory=False,
        )  # fmt: skip
        module.setup(stage="fit")
        batch = next(iter(module.train_dataloader()))
        assert batch["pert_cell_emb"].shape == batch["ctrl_cell_emb"].shape
        assert float(batch["pert_cell_emb"].max()) < np.log1p(1e4)

    return {"the loader of State reads the files of `tadvae datasets export`": read}


PACKAGES = {
    "decoupler": ("decoupler", "anndata"),
    "pertpy": ("pertpy", "anndata"),
    "expimap": ("scvi-tools", "anndata"),
    "gears": ("cell-gears", "scanpy", "anndata"),
    "cell_load": ("cell-load", "anndata"),
}


def main(program: str, folder: Path) -> None:
    found = {}
    for name, check in globals()[program](folder).items():
        try:
            check()
            found[name] = "passed"
        except Exception as error:  # noqa: BLE001 - it is the result
            found[name] = " ".join(f"failed: {type(error).__name__}: {error}".split())[:200]
    versions = {name: version(name) for name in PACKAGES[program]}
    print(json.dumps({"checks": found, "versions": versions}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
