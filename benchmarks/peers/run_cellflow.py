"""CellFlow on 50 principal components, with its default model but for layers of 256, not 2,048 or 4,096.

Trained until the budget of CPU seconds is spent, which its default widths would spend in some twenty steps.
Steps of 1,024 cells, optimiser and matching are its defaults. A target is one-hot and what is known of it
(leading axes of GO terms, for the protein embeddings of its authors); a context is the mean of its control
cells. A predicted mean is the mean of control cells that are carried along the flow.

    python run_cellflow.py CASE OUT
"""

# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "cellflow-tools==0.0.9", "jax==0.10.2", "flax==0.12.8", "anndata==0.12.19", "numpy==2.4.6",
#   "scipy==1.15.3", "pandas==2.3.3", "torch==2.13.0", "requests==2.32.5",
# ]
# [tool.tadvae-peer]
# python = "3.11"
# job = "prediction"
# cases = ["norman_alone", "datlinger", "kang_types", "simulated"]
# ///

import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from cellflow.model import CellFlow
from prediction_case import SEED, Case, Clock, read, save, term_vectors

COMPONENTS, WIDTH, BATCH, MOST = 50, 256, 1024, 100_000


class SpentError(Exception):
    """The budget of CPU seconds is spent."""


def main(case: Path, out: Path) -> None:
    about = read(case)
    X = about.adata.X.toarray().astype(np.float64)
    centre = X.mean(axis=0)
    axes = np.linalg.svd(X - centre, full_matrices=False)[2][:COMPONENTS]
    obs = about.adata.obs.copy()
    conditions = sorted({*obs["condition"], *(condition for _, condition in about.test)})
    targets = sorted({name for each in conditions for name in each.split("+")} - {"control"})
    known = term_vectors(about, targets)
    vectors = {name: np.r_[np.eye(len(targets))[i], known[name]] for i, name in enumerate(targets)}
    vectors["control"] = np.zeros(len(next(iter(vectors.values()))))
    slots = max(len(each.split("+")) for each in conditions)

    def described(condition: pd.Series) -> dict[str, pd.Categorical]:
        parts = [(each.split("+") + ["control"] * slots)[:slots] for each in condition]
        return {
            f"target_{i}": pd.Categorical([part[i] for part in parts], sorted(vectors)) for i in range(slots)
        }

    obs = obs.assign(control=obs["condition"] == "control", **described(obs["condition"]))
    adata = ad.AnnData(np.zeros((len(obs), 1), np.float32), obs=obs)
    adata.obsm["X_pca"] = ((X - centre) @ axes.T).astype(np.float32)
    adata.uns["targets"] = {name: vector.astype(np.float32) for name, vector in vectors.items()}
    contexts = {}
    if obs["context"].nunique() > 1:
        rows = obs["control"].to_numpy()
        means = pd.DataFrame(adata.obsm["X_pca"][rows]).groupby(obs["context"].to_numpy()[rows]).mean()
        adata.uns["contexts"] = {
            name: (row / np.linalg.norm(row)).astype(np.float32)
            for name, row in zip(means.index, means.to_numpy(), strict=True)
        }
        contexts = {"sample_covariates": ["context"], "sample_covariate_reps": {"context": "contexts"}}
    perturbed = set(obs["context"][~obs["control"]])  # it refuses controls that nothing is compared with
    model = CellFlow(adata[obs["context"].isin(perturbed).to_numpy()].copy())
    model.prepare_data(
        sample_rep="X_pca", control_key="control", split_covariates=["context"] if contexts else None,
        perturbation_covariates={"target": [f"target_{i}" for i in range(slots)]},
        perturbation_covariate_reps={"target": "targets"}, **contexts,
    )  # fmt: skip
    wide = (WIDTH,) * 3
    model.prepare_model(time_encoder_dims=wide, hidden_dims=wide, decoder_dims=wide, seed=SEED)
    took, steps = train(model, about)
    means = {}
    for context, condition in about.test:
        source = adata[(obs["control"] & (obs["context"] == context)).to_numpy()].copy()
        row = source.obs.iloc[[0]].assign(condition=condition, control=False)
        row = row.assign(**described(row["condition"]))
        found = np.asarray(next(iter(model.predict(source, covariate_data=row, sample_rep="X_pca").values())))
        means[context, condition] = np.maximum(centre + found.mean(axis=0) @ axes, 0)
    shown = steps * BATCH
    save(out, means, about.adata.var_names.tolist(), took, shown, shown / about.adata.n_obs)


def train(model: CellFlow, about: Case) -> tuple[tuple[float, float], int]:
    """CPU and wall seconds, and how many steps they were good for."""
    solver, clock, steps = model.trainer.solver, Clock(about), 0
    step = solver.step_fn

    def limited(*given: object) -> object:
        nonlocal steps
        if clock.over:
            raise SpentError
        steps += 1
        return step(*given)

    solver.step_fn = limited
    try:
        model.train(num_iterations=MOST, batch_size=BATCH, valid_freq=MOST)
    except SpentError:
        solver.is_trained, model._solver = True, solver
    return clock.took, steps


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve())
