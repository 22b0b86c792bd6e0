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

import sys
from pathlib import Path

import anndata as ad
import decoupler as dc
import numpy as np
import pandas as pd
from pathway_case import MIN_GENES, each_file

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


def main(case: Path, out: Path) -> None:
    for method, cases in METHODS.items():
        if case.name.startswith(cases):
            each_file(case, out, method, lambda place, sets, method=method: activity(method, place, sets))


def activity(method: str, place: Path, sets: dict[str, list[str]]) -> pd.DataFrame:
    net = pd.DataFrame(
        [(name, gene) for name, genes in sets.items() for gene in genes], columns=["source", "target"]
    )
    values = ad.read_h5ad(place).to_df().astype(np.float32)
    found = getattr(dc.mt, method)(values, net, tmin=MIN_GENES, empty=False)
    return found[0] if isinstance(found, tuple) else found


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
