"""State's transition model on all genes: its small model with layers of 256, not 672, and sets of 64 cells.

Steps of 16 sets until the budget of CPU seconds is spent, which its default width would spend in some ten
steps; the loss (energy), the rates and the rest are its defaults. The held-out context is in its file with
control cells alone, as a zero-shot context. A predicted mean is that of control cells of the context, each
carried along by its own command.

    python run_state.py CASE OUT
"""

# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "arc-state==0.11.1", "cell-load==0.10.4", "torch==2.13.0", "anndata==0.12.19", "numpy==2.4.6",
# ]
# [tool.tadvae-peer]
# python = "3.11"
# job = "prediction"
# cases = ["kang_types"]
# ///

import sys
from pathlib import Path
from unittest.mock import patch

import anndata as ad
import lightning.pytorch as pl
import numpy as np
import torch
from prediction_case import SEED, Case, Clock, read, save
from scipy import sparse
from state.__main__ import main as state

WIDTH, SETS, CELLS, MOST = 256, 16, 64, 1_000_000


class Budget(pl.Callback):
    """Ends the training when the budget of CPU seconds is spent; counts steps."""

    def __init__(self, about: Case) -> None:
        self.about, self.steps = about, 0
        self.clock = Clock(about)

    def on_train_start(self, *_) -> None:
        self.clock = Clock(self.about)

    def on_train_batch_end(self, trainer: pl.Trainer, *_) -> None:
        self.steps += 1
        trainer.should_stop = trainer.should_stop or self.clock.over
        self.took = self.clock.took


def described(adata: ad.AnnData) -> ad.AnnData:
    """Cells as State reads them."""
    X = sparse.csr_matrix(adata.X).astype(np.float32)
    obs = adata.obs[["condition", "context"]].astype(str).astype("category").assign(batch="one")
    obs["batch"] = obs["batch"].astype("category")
    return ad.AnnData(X, obs, adata.var[[]], obsm={"X_hvg": X.toarray()})


def call(*words: str) -> None:
    """Its command line, in this process."""
    with patch.object(sys, "argv", ["state", "tx", *words]):
        state()


def train(about: Case, work: Path) -> Budget:
    """Train by its command, which has no limit of time."""
    (work / "screen").mkdir(parents=True, exist_ok=True)
    described(about.adata).write_h5ad(work / "screen" / "screen.h5ad")
    held = "\n".join(f'"screen.{context}" = "test"' for context in {context for context, _ in about.test})
    text = (
        f'[datasets]\nscreen = "{work}/screen"\n[training]\nscreen = "train"\n[zeroshot]\n{held}\n[fewshot]\n'
    )
    (work / "split.toml").write_text(text)
    budget, fit = Budget(about), pl.Trainer.fit

    def limited(trainer: pl.Trainer, *given, **named) -> None:
        trainer.callbacks.append(budget)
        fit(trainer, *given, **named)

    with patch.object(pl.Trainer, "fit", limited):
        call(
            "train", f"data.kwargs.toml_config_path={work}/split.toml", "data.kwargs.embed_key=X_hvg",
            "data.kwargs.output_space=gene", "data.kwargs.num_workers=0", "data.kwargs.pin_memory=false",
            "data.kwargs.batch_col=batch", "data.kwargs.pert_col=condition",
            "data.kwargs.cell_type_key=context", "data.kwargs.control_pert=control", "model=state_sm",
            f"model.kwargs.hidden_dim={WIDTH}", f"model.kwargs.cell_set_len={CELLS}",
            f"model.kwargs.transformer_backbone_kwargs.intermediate_size={4 * WIDTH}",
            f"model.kwargs.transformer_backbone_kwargs.head_dim={WIDTH // 8}",
            f"training.batch_size={SETS}", f"training.max_steps={MOST}", f"training.train_seed={SEED}",
            "use_wandb=false", f"output_dir={work}", "name=run", "overwrite=true",
        )  # fmt: skip
    return budget


def main(case: Path, out: Path) -> None:
    about = read(case)
    torch.set_num_threads(about.threads)
    work = out / "work"
    budget, means = train(about, work), {}
    controls = about.adata[(about.adata.obs["condition"] == "control").to_numpy()]
    for context, condition in about.test:
        own = controls[(controls.obs["context"] == context).to_numpy()].copy()
        asked = own.copy()
        asked.obs["condition"] = condition
        cells = described(ad.concat([own, asked], index_unique="-"))
        cells.write_h5ad(work / "asked.h5ad")
        call(
            "infer", "--model-dir", f"{work}/run", "--checkpoint", f"{work}/run/checkpoints/final.ckpt",
            "--adata", f"{work}/asked.h5ad", "--embed-key", "X_hvg", "--pert-col", "condition",
            "--celltype-col", "context", "--batch-col", "batch", "--control-pert", "control",
            "--output", f"{work}/found.h5ad", "--seed", str(SEED),
        )  # fmt: skip
        found = ad.read_h5ad(work / "found.h5ad")
        rows = (found.obs["condition"].astype(str) == condition).to_numpy()
        means[context, condition] = np.asarray(found.obsm["X_hvg"][rows].mean(axis=0)).ravel()
    shown = budget.steps * SETS * CELLS
    genes = about.adata.var_names.tolist()
    save(out, means, genes, budget.took, shown, shown / about.adata.n_obs)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve())
