"""What makes the scGen baseline good: IFN-β in each of the cell types of Kang 2018, held out in turn.

Pearson-Δ and L2 of the mean profile, mean over cell types: the mean shift, the same in a space of principal
components, and scGen with its own decoding and with the decoded change added to the cell, by width::

    python benchmarks/scgen.py --widths 128 256
"""

import argparse
import time

import anndata as ad
import numpy as np
from studies import DATA

from tadvae.evaluation.metrics import l2, pearson_delta
from tadvae.evaluation.scgen import ScGen, latent_shift

CONTROL, STIMULUS = 0, 1
FILE = "screens/kang18_pbmc_ifnb_5celltypes.h5ad"


def principal(cells: dict, controls: np.ndarray, k: int) -> np.ndarray:
    """Predicted mean profile: latent arithmetic on k principal components of all cells given."""
    rows = np.concatenate([controls, *cells.values()])
    centre = rows.mean(axis=0)
    axes = np.linalg.svd(rows - centre, full_matrices=False)[2][:k]  # (k, G)
    before, after = (
        [(x - centre) @ axes.T for (_, p), x in cells.items() if p == which] for which in (CONTROL, STIMULUS)
    )
    return controls.mean(axis=0) + latent_shift(before, after) @ axes


def predictions(cells: dict, controls: np.ndarray, widths: list[int]) -> dict[str, np.ndarray]:
    """Predicted mean profiles of the held-out context by method."""
    pairs = [[x for (_, p), x in cells.items() if p == which] for which in (CONTROL, STIMULUS)]
    found = {"mean shift": controls.mean(axis=0) + latent_shift(*pairs)}
    found["principal components (50)"] = principal(cells, controls, 50)
    for width in widths:
        variant = type("Variant", (ScGen,), {"WIDTH": width})()
        clock = time.process_time()
        variant.fit(controls, cells, CONTROL)
        seconds = time.process_time() - clock
        print(f"width {width}: {seconds:.0f} s of CPU", flush=True)
        found[f"scGen, width {width}, decoded alone"] = variant.decoded(STIMULUS).mean(axis=0)
        found[f"scGen, width {width}, decoded change"] = variant.cells(STIMULUS).mean(axis=0)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--widths", type=int, nargs="+", default=[128, 256, 800])
    widths = parser.parse_args().widths
    data = ad.read_h5ad(DATA / FILE)
    counts = data.X.toarray()
    values = np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4).astype(np.float32)
    stimulated = (data.obs["condition"] != "control").to_numpy()
    types = sorted(set(data.obs["cell_type"]))
    cells = {
        (t, int(s)): values[(data.obs["cell_type"] == name).to_numpy() & (stimulated == s)]
        for t, name in enumerate(types)
        for s in (False, True)
    }
    scores: dict[str, list[tuple[float, float]]] = {}
    for t, name in enumerate(types):
        others = {key: x for key, x in cells.items() if key[0] != t}
        truth, control = cells[t, STIMULUS].mean(axis=0), cells[t, CONTROL].mean(axis=0)
        for method, mean in predictions(others, cells[t, CONTROL], widths).items():
            score = pearson_delta(mean, truth, control), l2(mean, truth, control)
            scores.setdefault(method, []).append(score)
            print(f"{name}: {method}: {score[0]:.3f} {score[1]:.2f}", flush=True)
    for method, each in scores.items():
        r, error = np.mean(each, axis=0)
        print(f"| {method} | {r:.3f} | {error:.2f} |")


if __name__ == "__main__":
    main()
