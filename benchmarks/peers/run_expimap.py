"""expiMap of scArches, with the squared error of log-normalised values; trained on the cells that are scored.

Layers of 256, weights of its tutorial (alpha 0.7, alpha_kl 0.5, annealed over 100 epochs), up to 400 epochs
with early stopping, or until the budget of CPU seconds is spent. The sign of a latent direction is free: it
is set so that the weights of its genes have a positive sum, as its own function does.

    python run_expimap.py CASE OUT
"""

# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "scarches==0.6.1", "torch==2.13.0", "anndata==0.11.4", "numpy==1.26.4", "pandas==2.3.3", "scipy==1.15.3",
# ]
# [tool.tadvae-peer]
# python = "3.11"
# job = "pathways"
# cases = ["truth", "panels", "targets"]
# ///

import sys
import time
from functools import partial
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scarches
import torch
from pathway_case import AGAIN, BUDGET, MIN_GENES, each_file
from scarches.trainers.trvae.trainer import Trainer

EPOCHS = 400


def activity(place: Path, sets: dict[str, list[str]], seed: int = 1) -> pd.DataFrame:
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    adata = ad.read_h5ad(place)
    adata.X = adata.X.toarray() if not isinstance(adata.X, np.ndarray) else adata.X
    adata.obs["study"] = "one"
    genes = pd.Index(adata.var_names)
    mask = {name: genes.isin(own) for name, own in sets.items()}
    mask = {name: own for name, own in mask.items() if own.sum() >= MIN_GENES}
    table = np.stack(list(mask.values())).astype(int)  # (P, G)
    model = scarches.models.EXPIMAP(
        adata, condition_key="study", hidden_layer_sizes=[256, 256, 256], recon_loss="mse", mask=table
    )
    start, check = time.process_time(), Trainer.check_early_stop
    Trainer.check_early_stop = lambda self: check(self) and time.process_time() - start < BUDGET
    stopping = {"early_stopping_metric": "val_unweighted_loss", "threshold": 0, "patience": 50}
    stopping |= {"reduce_lr": True, "lr_patience": 13, "lr_factor": 0.1}
    model.train(
        n_epochs=EPOCHS, alpha_epoch_anneal=100, alpha=0.7, alpha_kl=0.5, weight_decay=0.0,
        early_stopping_kwargs=stopping, use_early_stopping=True, seed=seed,
    )  # fmt: skip
    Trainer.check_early_stop = check
    found = model.get_latent(adata.X, np.array(["one"] * adata.n_obs), mean=True)
    model.latent_directions(method="sum")
    sign = model.adata.uns["directions"]
    return pd.DataFrame((np.asarray(found) * sign)[:, : len(mask)], columns=list(mask))


if __name__ == "__main__":
    place, found = Path(sys.argv[1]), Path(sys.argv[2])
    each_file(place, found, "expiMap", activity)
    if place.name.startswith("truth"):
        each_file(place, found, "expiMap" + AGAIN, partial(activity, seed=2))
