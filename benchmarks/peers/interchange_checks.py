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

    return {"scanpy finds neighbours in the latent space": neighbours}


PACKAGES = {
    "decoupler": ("decoupler", "anndata"),
    "pertpy": ("pertpy", "anndata"),
    "expimap": ("scvi-tools", "anndata"),
    "gears": ("scanpy", "anndata"),
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
