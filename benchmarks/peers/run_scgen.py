"""scGen with the settings of its tutorial: up to 100 epochs of batches of 32, early stopping (patience 25).

It predicts the response in a context of which it has seen control cells only.

    python run_scgen.py CASE OUT
"""

# /// script
# requires-python = ">=3.10,<3.11"
# dependencies = [
#   "scgen==2.1.0", "scvi-tools==0.20.3", "torch==2.0.0", "anndata==0.9.2", "numpy==1.23.5", "scipy==1.12.0",
#   "pandas==1.5.3", "lightning==2.0.9", "pytorch-lightning==1.9.5", "jax==0.4.23", "jaxlib==0.4.23",
#   "flax==0.8.4", "numpyro==0.15.0", "optax==0.2.1", "setuptools==70.0.0",
# ]
# [tool.tadvae-peer]
# python = "3.10"
# job = "prediction"
# cases = ["kang_types"]
# ///

import sys
from pathlib import Path

import numpy as np
import scgen
import scvi
import torch
from prediction_case import SEED, Clock, read, save
from stop_on_budget import StopOnBudget

EPOCHS, BATCH = 100, 32


def main(case: Path, out: Path) -> None:
    about = read(case)
    torch.set_num_threads(about.threads)
    scvi.settings.seed = SEED
    adata = about.adata
    del adata.layers["counts"]
    adata.X = adata.X.toarray()
    scgen.SCGEN.setup_anndata(adata, batch_key="condition", labels_key="context")
    model, clock = scgen.SCGEN(adata), Clock(about)
    model.train(
        max_epochs=EPOCHS, batch_size=BATCH, early_stopping=True, early_stopping_patience=25,
        callbacks=[StopOnBudget(clock)], enable_progress_bar=False,
    )  # fmt: skip
    took, epochs = clock.took, model.trainer.current_epoch
    means = {}
    for context, condition in about.test:
        found, _ = model.predict(ctrl_key="control", stim_key=condition, celltype_to_predict=context)
        means[context, condition] = np.asarray(found.X).mean(axis=0)
    shown = round(0.9 * adata.n_obs) * epochs  # a tenth is held out for early stopping
    save(out, means, adata.var_names.tolist(), took, shown, epochs)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve())
