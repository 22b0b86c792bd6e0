"""Genes of a store that a model may use as input: all, the protein-coding ones, or a list."""

from importlib import resources
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tadvae.base.errors import UserError
from tadvae.cells.normalize import ALL, PROTEIN_CODING
from tadvae.store.reader import Store


def selected_genes(store: Store, which: str) -> np.ndarray:
    """Select genes of the store's vocabulary, bool, shape (n_genes,).

    Parameters
    ----------
    which
        ``all``, ``protein_coding``, or a text file with one gene per line (Ensembl id, symbol, alias, or the
        name in a file of the store).

    Raises
    ------
    UserError
        If gene types are unknown, the file cannot be read, or none of its genes is in the store.
    """
    genes = store.genes["gene"].to_numpy()
    if which == ALL:
        return np.ones(len(genes), bool)
    if which == PROTEIN_CODING:
        if store.reference != "human":
            raise UserError(
                "preprocess.genes: protein_coding needs the human gene reference, and this store was "
                f"converted with '{store.reference}'; give a file of genes."
            )
        return np.isin(genes, _protein_coding())
    try:
        names = [line.strip() for line in Path(which).read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"preprocess.genes: {which} cannot be read ({type(error).__name__}); give all, protein_coding, "
            "or a text file with one gene per line."
        ) from None
    wanted = store.gene_names.keys([name for name in names if name])
    chosen = np.isin(genes, [key for key in wanted if key is not None])
    if not chosen.any():
        raise UserError(f"preprocess.genes: no gene of {which} is in the store; see `tadvae inspect STORE`.")
    return chosen


def _protein_coding() -> list[str]:
    data = resources.files("tadvae").joinpath("resources", "genes_human.parquet").read_bytes()
    table = pq.read_table(pa.BufferReader(data), columns=["symbol", "ensembl_id", "gene_type"]).to_pandas()
    coding = table[table["gene_type"] == "protein-coding"]
    return [*coding["ensembl_id"].dropna(), *coding["symbol"]]
