"""CPA on log-normalised values (squared error), batches of 512, until the budget of CPU seconds is spent.

It predicts combinations of targets that it has seen alone, from control cells.

    python run_cpa.py CASE OUT
"""

# /// script
# requires-python = ">=3.10"
# dependencies = ["cpa-tools==0.8.8", "pyarrow==17.0.0"]
# [tool.tadvae-peer]
# python = "3.10"
# job = "prediction"
# cases = ["norman_alone-combo"]
# ///

import sys
from pathlib import Path

import anndata as ad
import cpa
import numpy as np
import torch
from prediction_case import SEED, Clock, read, save
from stop_on_budget import StopOnBudget

EPOCHS, BATCH = 2000, 512


def controls_as(adata: ad.AnnData, condition: str) -> ad.AnnData:
    """Control cells, under the label of a combination to predict: its labels have to be known before."""
    cells = adata[(adata.obs["condition"] == "ctrl").to_numpy()].copy()
    cells.obs["condition"], cells.obs["split"] = condition, "ood"
    return cells


def main(case: Path, out: Path) -> None:
    about = read(case)
    torch.set_num_threads(1)
    adata = about.adata
    del adata.layers["counts"]
    adata.obs["condition"] = [str(each).replace("control", "ctrl") for each in adata.obs["condition"]]
    adata.obs["split"] = np.where(np.random.default_rng(SEED).random(adata.n_obs) < 0.1, "valid", "train")
    seen = {name for each in adata.obs["condition"] for name in each.split("+")}
    asked = [each for each in about.test if set(each[1].split("+")) <= seen]
    adata = ad.concat([adata, *(controls_as(adata, condition) for _, condition in asked)], index_unique="-")
    adata.obs["dose"] = ["+".join("1" for _ in each.split("+")) for each in adata.obs["condition"]]
    cpa.CPA.setup_anndata(
        adata, perturbation_key="condition", control_group="ctrl", dosage_key="dose",
        categorical_covariate_keys=["context"], is_count_data=False, max_comb_len=2,
    )  # fmt: skip
    model = cpa.CPA(
        adata, split_key="split", train_split="train", valid_split="valid", test_split="ood",
        recon_loss="gauss", seed=SEED,
    )  # fmt: skip
    clock = Clock()
    model.train(
        max_epochs=EPOCHS, batch_size=BATCH, use_gpu=False, early_stopping_patience=10,
        check_val_every_n_epoch=5, callbacks=[StopOnBudget(clock)], save_path=str(out / "model"),
    )  # fmt: skip
    seconds, epochs, means = clock.seconds, model.trainer.current_epoch, {}
    model.predict(adata, batch_size=BATCH)
    for context, condition in asked:
        own = (adata.obs["split"] == "ood") & (adata.obs["condition"] == condition)
        means[context, condition] = np.asarray(adata.obsm["CPA_pred"])[own.to_numpy()].mean(axis=0)
    shown = int((adata.obs["split"] == "train").sum()) * epochs
    save(out, means, adata.var_names.tolist(), seconds, shown, epochs)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve())
