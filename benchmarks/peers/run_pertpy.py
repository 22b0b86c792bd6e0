"""scGen as pertpy has it, on JAX, with the settings of its tutorial: 100 epochs of batches of 32.

Early stopping with a patience of 25 epochs, or when the budget of CPU seconds is spent.

    python run_pertpy.py CASE OUT
"""

# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "pertpy==1.0.3", "jax==0.10.2", "flax==0.12.8", "torch==2.13.0", "anndata==0.12.19",
#   "statsmodels==0.14.4", "scvi-tools==1.4.2",
# ]
# [tool.tadvae-peer]
# python = "3.11"
# job = "prediction"
# cases = ["kang_types"]
# ///

import sys
from pathlib import Path

import numpy as np
import pertpy as pt
import torch
from prediction_case import SEED, Clock, read, save
from stop_on_budget import StopOnBudget

EPOCHS, BATCH = 100, 32


def main(case: Path, out: Path) -> None:
    about = read(case)
    torch.set_num_threads(about.threads)
    np.random.seed(SEED)  # noqa: NPY002 - it draws cells with the old generator
    adata = about.adata
    del adata.layers["counts"]
    adata.X = adata.X.toarray()
    pt.tl.Scgen.setup_anndata(adata, batch_key="condition", labels_key="context")
    model, clock = pt.tl.Scgen(adata), Clock(about)
    model.train(
        max_epochs=EPOCHS, batch_size=BATCH, early_stopping=True, early_stopping_patience=25,
        callbacks=[StopOnBudget(clock)],
    )  # fmt: skip
    took, epochs = clock.took, model.trainer.current_epoch
    means = {}
    for context, condition in about.test:
        found, _ = model.predict(ctrl_key="control", stim_key=condition, celltype_to_predict=context)
        means[context, condition] = np.asarray(found.X).mean(axis=0)
    save(out, means, adata.var_names.tolist(), took, round(0.9 * adata.n_obs) * epochs, epochs)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve())
