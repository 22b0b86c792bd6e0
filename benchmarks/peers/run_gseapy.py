"""Single-sample gene set enrichment of GSEApy with its defaults, for pathways of five or more measured genes.

Permuted pathways are left out: a panel takes it minutes.

    python run_gseapy.py CASE OUT
"""

# /// script
# requires-python = ">=3.11"
# dependencies = ["gseapy==1.3.1", "anndata==0.12.19", "numpy==2.4.6", "pandas==2.3.3", "scipy==1.17.1"]
# [tool.tadvae-peer]
# python = "3.11"
# job = "pathways"
# cases = [
#   "truth", "panels-0-true", "panels-1-true", "panels-2-true", "panels-3-true", "targets-datlinger-true",
#   "targets-norman_alone-true",
# ]
# ///

import sys
from pathlib import Path

import anndata as ad
import gseapy
import pandas as pd
from pathway_case import MIN_GENES, each_file


def activity(place: Path, sets: dict[str, list[str]]) -> pd.DataFrame:
    values = ad.read_h5ad(place).to_df().T  # (G, n)
    found = gseapy.ssgsea(
        values, sets, outdir=None, min_size=MIN_GENES, max_size=values.shape[0], threads=1, no_plot=True
    )
    table = found.res2d.pivot(index="Name", columns="Term", values="ES").astype(float)
    return table.loc[values.columns]


if __name__ == "__main__":
    each_file(Path(sys.argv[1]), Path(sys.argv[2]), "ssgsea", activity)
