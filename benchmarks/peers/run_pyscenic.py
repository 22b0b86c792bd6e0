"""AUCell of pySCENIC with its defaults (the 5% highest genes of a cell).

python run_pyscenic.py CASE OUT
"""

# /// script
# requires-python = ">=3.10"
# dependencies = [
#   "pyscenic==0.12.1", "ctxcore==0.2.0", "anndata==0.11.4", "numpy==2.2.6", "pandas==2.3.3", "scipy==1.15.3",
#   "setuptools==80.9.0",
# ]
# [tool.tadvae-peer]
# python = "3.10"
# job = "pathways"
# cases = ["truth", "panels", "targets"]
# ///

import sys
from pathlib import Path

import anndata as ad
import pandas as pd
from ctxcore.genesig import GeneSignature
from pathway_case import MIN_GENES, each_file
from pyscenic.aucell import aucell


def activity(place: Path, sets: dict[str, list[str]]) -> pd.DataFrame:
    values = ad.read_h5ad(place).to_df()
    measured = {name: [gene for gene in genes if gene in values] for name, genes in sets.items()}
    signatures = [
        GeneSignature(name=name, gene2weight=genes)
        for name, genes in measured.items()
        if len(genes) >= MIN_GENES
    ]
    return aucell(values, signatures, num_workers=1, seed=1).loc[values.index]


if __name__ == "__main__":
    each_file(Path(sys.argv[1]), Path(sys.argv[2]), "aucell", activity)
