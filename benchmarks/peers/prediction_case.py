"""Reads a case of prediction and writes what a program predicts, inside the program's environment.

Needs numpy and anndata only; see :mod:`peers.prediction_tests` for the files.
"""

import json
import resource
import time
from dataclasses import dataclass
from pathlib import Path

import anndata as ad
import numpy as np

SEED = 1


@dataclass
class Case:
    """Cells to train on and what is asked: pairs of context and condition.

    ``budget`` is in seconds of CPU, after which a training without a natural end stops, at the end of the
    epoch; PyTorch and JAX have ``threads`` threads.
    """

    folder: Path
    adata: ad.AnnData
    test: list[tuple[str, str]]
    terms: dict[str, list[str]]
    budget: float
    threads: int


def read(folder: Path) -> Case:
    """Read a case's folder."""
    about = json.loads((folder / "case.json").read_text())
    adata = ad.read_h5ad(folder / about["cells"])
    for column in ("condition", "context"):
        adata.obs[column] = adata.obs[column].astype(str).astype("category")
    terms = json.loads((folder / about["terms"]).read_text())
    test = [tuple(each) for each in about["test"]]
    return Case(folder, adata, test, terms, about["budget"], about["threads"])


class Clock:
    """CPU and wall seconds of a training, and whether the budget is spent."""

    def __init__(self, case: Case) -> None:
        self.budget = case.budget
        self.start = time.process_time(), time.perf_counter()

    @property
    def took(self) -> tuple[float, float]:
        return time.process_time() - self.start[0], time.perf_counter() - self.start[1]

    @property
    def over(self) -> bool:
        return self.took[0] > self.budget


def term_vectors(case: Case, genes: list[str], size: int = 32) -> dict[str, np.ndarray]:
    """What is known of genes, as vectors of unit length: leading axes of their GO terms; zeros if unknown.

    Stands for the embeddings of protein language models that the authors use, which cannot be had offline.
    """
    terms = sorted({term for each in case.terms.values() for term in each})
    index = {term: i for i, term in enumerate(terms)}
    known = sorted(case.terms)
    table = np.zeros((len(known), len(terms)))
    for row, gene in enumerate(known):
        table[row, [index[term] for term in case.terms[gene]]] = 1
    table *= np.log(len(known) / table.sum(axis=0))
    table /= np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-9)
    left, values, _ = np.linalg.svd(table, full_matrices=False)
    vectors = left[:, :size] * values[:size]
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    rows = dict(zip(known, vectors, strict=True))
    return {gene: rows.get(gene, np.zeros(vectors.shape[1])) for gene in genes}


def save(
    out: Path, means: dict[tuple[str, str], np.ndarray], genes: list[str], took: tuple[float, float],
    cells: int, epochs: float,
) -> None:  # fmt: skip
    """Write mean profiles by context and condition, and what the training took."""
    contexts, conditions = zip(*means, strict=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    out.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        out / "prediction.npz", mean=np.stack(list(means.values())).astype(np.float32),
        contexts=np.array(contexts, str), conditions=np.array(conditions, str), genes=np.array(genes, str),
        seconds=took[0], wall=took[1], cells=cells, epochs=epochs, peak=peak,
    )  # fmt: skip
