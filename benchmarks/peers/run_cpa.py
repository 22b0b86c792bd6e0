"""CPA with the settings of its tutorial on Norman 2019: counts, a negative binomial, batches of 512.

Up to 2,000 epochs with early stopping (patience 10 checks of every fifth epoch), or until the budget of CPU
seconds is spent; the adversary's warm-up takes 100 epochs there. It predicts combinations of targets that it
has seen alone, from control cells. A predicted profile is log1p of expected counts per ten thousand, which
for rare genes is above the mean log1p of cells; so what counts is its change from what the program predicts
for the control cells themselves, added to their mean.

    python run_cpa.py CASE OUT
"""

# /// script
# requires-python = ">=3.10"
# dependencies = ["cpa-tools==0.8.8", "pyarrow==17.0.0"]
# [tool.tadvae-peer]
# python = "3.10"
# job = "prediction"
# cases = ["norman_alone-combo", "datlinger", "simulated"]
# ///

import sys
from pathlib import Path

import anndata as ad
import cpa
import numpy as np
import pandas as pd
import torch
from prediction_case import SEED, Clock, read, save
from stop_on_budget import StopOnBudget

EPOCHS, BATCH = 2000, 512
MODEL = {
    "n_latent": 128, "recon_loss": "nb", "doser_type": "linear", "variational": False,
    "n_hidden_encoder": 512, "n_layers_encoder": 2, "n_hidden_decoder": 256, "n_layers_decoder": 2,
    "use_batch_norm_encoder": True, "use_layer_norm_encoder": False, "dropout_rate_encoder": 0.0,
    "use_batch_norm_decoder": False, "use_layer_norm_decoder": False, "dropout_rate_decoder": 0.2,
}  # fmt: skip
TRAINING = {
    "n_epochs_pretrain_ae": 30, "n_epochs_adv_warmup": 100, "n_epochs_mixup_warmup": 10, "mixup_alpha": 0.2,
    "adv_steps": 2, "n_hidden_adv": 128, "n_layers_adv": 2, "use_batch_norm_adv": True,
    "use_layer_norm_adv": False, "dropout_rate_adv": 0.2, "reg_adv": 50.0, "pen_adv": 1.0, "adv_loss": "cce",
    "lr": 3e-4, "wd": 4e-7, "adv_lr": 3e-4, "adv_wd": 4e-7, "doser_lr": 3e-4, "doser_wd": 4e-7,
    "step_size_lr": 45,
}  # fmt: skip


def controls_as(adata: ad.AnnData, condition: str) -> ad.AnnData:
    """Control cells, under the label of a combination to predict: its labels have to be known before."""
    cells = adata[(adata.obs["condition"] == "ctrl").to_numpy()].copy()
    cells.obs["condition"], cells.obs["split"] = condition, "ood"
    return cells


def profile(adata: ad.AnnData, rows: pd.Series) -> np.ndarray:
    """Mean over cells of log1p of expected counts per ten thousand."""
    expected = np.asarray(adata.obsm["CPA_pred"])[rows.to_numpy()]
    return np.log1p(expected / expected.sum(axis=1, keepdims=True) * 1e4).mean(axis=0)


def main(case: Path, out: Path) -> None:
    about = read(case)
    torch.set_num_threads(about.threads)
    adata = about.adata
    control = np.asarray(adata.X[(adata.obs["condition"] == "control").to_numpy()].mean(axis=0)).ravel()
    adata.X = adata.layers.pop("counts").astype(np.float32)
    adata.obs["condition"] = [str(each).replace("control", "ctrl") for each in adata.obs["condition"]]
    adata.obs["split"] = np.where(np.random.default_rng(SEED).random(adata.n_obs) < 0.1, "valid", "train")
    seen = {name for each in adata.obs["condition"] for name in each.split("+")}
    asked = [each for each in about.test if set(each[1].split("+")) <= seen]
    adata = ad.concat([adata, *(controls_as(adata, condition) for _, condition in asked)], index_unique="-")
    adata.obs["dose"] = ["+".join("1" for _ in each.split("+")) for each in adata.obs["condition"]]
    cpa.CPA.setup_anndata(
        adata, perturbation_key="condition", control_group="ctrl", dosage_key="dose",
        categorical_covariate_keys=["context"], is_count_data=True, max_comb_len=2,
    )  # fmt: skip
    model = cpa.CPA(
        adata, split_key="split", train_split="train", valid_split="valid", test_split="ood",
        seed=SEED, **MODEL,
    )  # fmt: skip
    clock = Clock(about)
    model.train(
        max_epochs=EPOCHS, batch_size=BATCH, use_gpu=False, early_stopping_patience=10,
        check_val_every_n_epoch=5, plan_kwargs=TRAINING, callbacks=[StopOnBudget(clock)],
        save_path=str(out / "model"),
    )  # fmt: skip
    took, epochs, means = clock.took, model.trainer.current_epoch, {}
    model.predict(adata, batch_size=BATCH)
    before = profile(adata, adata.obs["condition"] == "ctrl")
    for context, condition in asked:
        after = profile(adata, (adata.obs["split"] == "ood") & (adata.obs["condition"] == condition))
        means[context, condition] = np.maximum(control + after - before, 0)
    shown = int((adata.obs["split"] == "train").sum()) * epochs
    save(out, means, adata.var_names.tolist(), took, shown, epochs)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve())
