"""Enrichment methods of decoupler with their default settings: pathways of five or more measured genes.

python run_decoupler.py CASE OUT
"""

# /// script
# requires-python = ">=3.11"
# dependencies = ["decoupler==2.2.0", "anndata==0.12.19", "numpy==2.4.6", "scipy==1.17.1", "numba==0.68.1"]
# [tool.tadvae-peer]
# python = "3.11"
# job = "pathways"
# ///

import json
import sys
from pathlib import Path

import anndata as ad
import decoupler as dc
import numpy as np
import pandas as pd

METHODS = {
    "ulm": ("truth", "panels", "targets"),
    "mlm": ("truth", "panels", "targets"),
    "zscore": ("truth", "panels", "targets"),
    "aucell": ("truth", "panels", "targets"),
    "gsva": ("truth-0",),
}
"""Methods with the cases that they run in, by the beginning of their names.

gsva runs on one simulation only: it takes a minute of CPU for the 700 cells of one panel.
"""

MIN_GENES = 5


def main(case: Path, out: Path) -> None:
    about = json.loads((case / "case.json").read_text())
    net = read_gmt(case / about["pathways"])
    for name, place in about["cells"].items():
        adata = ad.read_h5ad(case / place)
        for method, cases in METHODS.items():
            done = out / method / f"{name}.npz"
            if not case.name.startswith(cases) or done.exists() or (out / method / "error.txt").exists():
                continue
            done.parent.mkdir(parents=True, exist_ok=True)
            try:
                values = adata.to_df().astype(np.float32)
                found = getattr(dc.mt, method)(values, net, tmin=MIN_GENES, empty=False)
                found = found[0] if isinstance(found, tuple) else found
            except Exception as error:  # noqa: BLE001 - said in the table
                (done.parent / "error.txt").write_text(f"{type(error).__name__}: {error}")
                continue
            save(done, found)


def read_gmt(place: Path) -> pd.DataFrame:
    lines = [line.split("\t") for line in place.read_text().splitlines()]
    return pd.DataFrame(
        [(line[0], gene) for line in lines for gene in dict.fromkeys(line[2:])], columns=["source", "target"]
    )


def save(place: Path, activity: pd.DataFrame) -> None:
    partial = place.with_suffix(".partial.npz")
    names = np.array(activity.columns, dtype=np.str_)
    np.savez_compressed(partial, activity=activity.to_numpy(np.float32), pathways=names)
    partial.rename(place)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
