"""biolord with its default module, and the likelihood for log-normalised values (``normal``).

The learning rate of attributes, which has no default that works, is that of its tutorials.

Up to 500 epochs of batches of 128 (the default) with early stopping (patience 20 checks of every tenth
epoch), as in its tutorials, or until the budget of CPU seconds is spent. A perturbation is an ordered
attribute, as in its study of Norman 2019: which targets it has, and the sum of what is known of them (leading
axes of GO terms in place of its neighbours in a graph of GO terms).
A context is a categorical attribute. Predicted from the control cells.

    python run_biolord.py CASE OUT
"""

# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "biolord==0.0.3", "scvi-tools==1.4.2", "torch==2.13.0", "anndata==0.12.19", "numpy==2.4.6",
#   "pandas==2.3.3",
# ]
# [tool.tadvae-peer]
# python = "3.11"
# job = "prediction"
# cases = ["norman_alone", "datlinger", "kang_types", "simulated"]
# ///

import sys
from pathlib import Path

import biolord
import numpy as np
import scvi
import torch
from prediction_case import SEED, Clock, read, save, term_vectors
from stop_on_budget import StopOnBudget

EPOCHS, BATCH = 500, 128
RATES = {"attribute_nn_lr": 1e-2, "attribute_nn_wd": 4e-8}


def main(case: Path, out: Path) -> None:
    about = read(case)
    torch.set_num_threads(about.threads)
    scvi.settings.seed = SEED
    adata = about.adata
    del adata.layers["counts"]
    adata.X = adata.X.toarray()
    asked = {condition for _, condition in about.test}
    every = {name for each in asked | set(adata.obs["condition"]) for name in each.split("+")} - {"control"}
    targets, vectors = sorted(every), term_vectors(about, sorted(every))

    def attribute(condition: str) -> np.ndarray:
        own = [name for name in condition.split("+") if name != "control"]
        known = sum((vectors[name] for name in own), np.zeros(len(vectors[targets[0]])))
        return np.r_[[float(target in own) for target in targets], known].astype(np.float32)

    table = {condition: attribute(condition) for condition in {*asked, *adata.obs["condition"]}}
    adata.obsm["perturbation"] = np.stack([table[each] for each in adata.obs["condition"]])
    biolord.Biolord.setup_anndata(
        adata, ordered_attributes_keys=["perturbation"], categorical_attributes_keys=["context"]
    )
    model = biolord.Biolord(
        adata, module_params={"gene_likelihood": "normal", "seed": SEED}, model_name=str(out / "model")
    )
    clock = Clock(about)
    model.train(
        max_epochs=EPOCHS, batch_size=BATCH, plan_kwargs=RATES,
        early_stopping=True, early_stopping_patience=20,
        check_val_every_n_epoch=10, callbacks=[StopOnBudget(clock)], enable_checkpointing=False,
        enable_progress_bar=False, accelerator="cpu",
    )  # fmt: skip
    took, epochs = clock.took, model.trainer.current_epoch
    model.module.eval()
    means = {}
    for context, condition in about.test:
        rows = (adata.obs["condition"] == "control") & (adata.obs["context"] == context)
        cells = model.get_dataset(adata[rows.to_numpy()].copy())
        cells["perturbation"] = torch.from_numpy(np.tile(table[condition], (int(rows.sum()), 1)))
        with torch.no_grad():
            means[context, condition] = model.module.get_expression(cells)[0].numpy().mean(axis=0)
    save(out, means, adata.var_names.tolist(), took, round(0.9 * adata.n_obs) * epochs, epochs)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve())
