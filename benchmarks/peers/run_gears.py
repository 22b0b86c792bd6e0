"""GEARS with its default settings, but for 5 epochs of its 20, graphs of similar genes built offline.

Its learning rate halves after each: the first 5 epochs have 31/32 of the sum of the rates of all. With four
times the budget it has all 20. Its best epoch by validation counts.

Its graph of gene ontology is made by its own code from the annotations of the case (GO, biological process)
in place of the file that it would download; the genes of the graph are those measured, perturbed or asked
for. A perturbation outside this graph is not predicted.

    python run_gears.py CASE OUT
"""

# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "cell-gears==0.1.2", "torch==2.13.0", "torch_geometric==2.6.1", "anndata==0.12.19", "scanpy==1.11.5",
# ]
# [tool.tadvae-peer]
# python = "3.11"
# job = "prediction"
# cases = ["norman_alone"]
# ///

import os
import pickle
import sys
import types
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from prediction_case import SEED, Clock, read, save

EPOCHS, BATCH = 5, 32  # epochs for 60 seconds of the budget
VALIDATION = 0.1  # share of the training conditions that chooses the epoch


def main(case: Path, out: Path) -> None:
    about = read(case)
    torch.set_num_threads(about.threads)
    out.mkdir(parents=True, exist_ok=True)
    work = (out / "work").resolve()
    (work / "data").mkdir(parents=True, exist_ok=True)
    terms, adata = about.terms, about.adata
    with (work / "gene2go_all.pkl").open("wb") as file:
        pickle.dump({gene: set(each) for gene, each in terms.items()}, file)
    del adata.layers["counts"]
    os.chdir(work)  # it writes its graph below the working folder
    sys.modules.setdefault("wandb", types.ModuleType("wandb"))
    from gears import GEARS, PertData

    # GEARS 0.1.2 indexes a sparse matrix with a Series; scipy then calls this former method of pandas
    pd.Series.nonzero = lambda self: self.to_numpy().nonzero()
    torch.manual_seed(SEED)
    np.random.seed(SEED)  # noqa: NPY002 - it draws control cells with the old generator
    adata.obs["condition"] = [_condition(name) for name in adata.obs["condition"].astype(str)]
    adata.obs["condition"] = adata.obs["condition"].astype("category")
    adata.obs["cell_type"] = "K562"
    adata.var["gene_name"] = adata.var_names
    known = {gene for gene in terms if gene}
    with (work / "genes.pkl").open("wb") as file:
        pickle.dump(sorted(known), file)
    data = PertData(str(work), gene_set_path=str(work / "genes.pkl"), default_pert_graph=False)
    outside = [
        name for name in adata.obs["condition"].unique() if not set(name.split("+")) - {"ctrl"} <= known
    ]
    data.new_data_process("screen", adata[~adata.obs["condition"].isin(outside)].copy())
    data.load(data_path=str(work / "screen"))
    names = sorted(set(data.adata.obs["condition"]) - {"ctrl"})
    chosen = np.random.default_rng(SEED).permutation(names)[: max(1, round(VALIDATION * len(names)))]
    split = {"val": list(chosen), "train": ["ctrl", *(n for n in names if n not in set(chosen))]}
    with (work / "split.pkl").open("wb") as file:
        pickle.dump(split, file)
    data.prepare_split(split="custom", seed=SEED, split_dict_path=str(work / "split.pkl"))
    data.split = "no_test"  # the case has no held-out cell, and an empty loader is an error
    data.get_dataloader(batch_size=BATCH, test_batch_size=BATCH)
    model = GEARS(data, device="cpu")
    model.model_initialize()
    clock = Clock(about)
    epochs = round(EPOCHS * about.budget / 60)
    model.train(epochs=epochs)
    took = clock.took
    asked = {pair: pair[1].split("+") for pair in about.test}
    asked = {pair: genes for pair, genes in asked.items() if set(genes) <= set(model.pert_list)}
    found = model.predict(list(asked.values()))
    means = {pair: found["_".join(genes)] for pair, genes in asked.items()}
    shown = len(data.dataloader["train_loader"].dataset) * epochs
    save(out, means, list(data.gene_names), took, shown, epochs)


def _condition(name: str) -> str:
    """The names of GEARS: ``ctrl``, ``A+ctrl``, ``A+B``."""
    return "ctrl" if name == "control" else name if "+" in name else f"{name}+ctrl"


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve())
