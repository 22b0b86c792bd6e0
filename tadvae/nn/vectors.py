"""Vectors of genes and pathways from files of the user, matched to the rows and width of the model."""

import gzip
import io
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from tadvae.base.errors import UserError
from tadvae.base.filesystem import Location
from tadvae.data.vocabulary import Vocabulary
from tadvae.nn.embedding import GivenVectors
from tadvae.nn.strategies.base import PathwayConfig


def given_vectors(config: PathwayConfig, vocabulary: Vocabulary) -> GivenVectors:
    """Read the files that the config names; a malformed one is a UserError."""
    gene, pathway = config.gene_vectors, config.pathway_vectors
    return GivenVectors(
        gene=None if gene is None else given_genes(gene, vocabulary, config.d_embed),
        pathway=None if pathway is None else given_pathways(pathway, vocabulary, config.d_embed),
    )


def given_genes(file: str, vocabulary: Vocabulary, d: int) -> Tensor:
    """Vectors of the vocabulary's genes from a file, (n_genes, d).

    Names are matched to gene keys and symbols as they are, and otherwise by
    :attr:`Vocabulary.gene_names`.

    Raises
    ------
    UserError
        If the file is malformed or names none of the genes.
    """
    names, vectors = read_vectors(Location.of(file))
    genes = vocabulary.genes
    symbol = {s: i for i, s in enumerate(genes["symbol"]) if isinstance(s, str)}
    row = symbol | vocabulary.gene_index
    rest = [name for name in names if name not in row]
    for name, key in zip(rest, vocabulary.gene_names.keys(rest), strict=True):
        row[name] = vocabulary.gene_index.get(key or "", -1)
    at = [row[name] for name in names]
    exact = [2 * (name in vocabulary.gene_index) + (name in symbol) for name in names]
    return _place(file, "genes of the vocabulary", names, vectors, at, exact, len(genes), d)


def given_pathways(file: str, vocabulary: Vocabulary, d: int) -> Tensor:
    """Vectors of the model's pathways from a file, (P, d); rows are named by id or by name.

    Raises
    ------
    UserError
        If the file is malformed or names none of the pathways.
    """
    names, vectors = read_vectors(Location.of(file))
    membership = vocabulary.membership
    by_name = {name: p for p, name in enumerate(membership.names)}
    row = by_name | {key: p for p, key in enumerate(membership.pathway_ids)}
    at = [row.get(name, -1) for name in names]
    exact = [int(name in membership.pathway_ids) for name in names]
    return _place(file, "pathways", names, vectors, at, exact, membership.n_pathways, d)


def _place(
    file: str,
    what: str,
    names: Sequence[str],
    vectors: np.ndarray,
    at: Sequence[int],
    exact: Sequence[int],
    n: int,
    d: int,
) -> Tensor:
    """Put vectors (m, D) into the rows ``at`` of (n, d); of several for a row, the most exact name wins."""
    chosen: dict[int, int] = {}
    for i in sorted(range(len(names)), key=lambda i: -exact[i]):
        if at[i] >= 0:
            chosen.setdefault(at[i], i)
    if not chosen:
        raise UserError(
            f"{file}: none of its {len(names)} rows names one of the {n} {what} (the first is "
            f"'{names[0]}'); name the rows as the model does."
        )
    result = torch.zeros(n, d)
    rows = leading(vectors[list(chosen.values())], d)
    result[torch.tensor(list(chosen))] = torch.from_numpy(rows.astype(np.float32))
    return result


def leading(vectors: np.ndarray, d: int) -> np.ndarray:
    """Vectors (n, D) in d dimensions, (n, d).

    Vectors of width d are returned unchanged. Others are centred, projected on their d leading principal
    components (fewer are padded with zeros) and scaled to a mean length of one, as learned embeddings have.
    """
    if vectors.shape[1] == d:
        return vectors
    centred = vectors - vectors.mean(axis=0)
    _, axes = np.linalg.eigh(centred.T @ centred)  # ascending
    axes = axes[:, ::-1][:, :d]  # (D, ≤ d)
    largest = axes[np.abs(axes).argmax(axis=0), range(axes.shape[1])]
    turned = centred @ (
        axes * np.sign(largest)
    )  # the sign of an axis is arbitrary: fixed here, so that results are reproducible
    length = np.linalg.norm(turned, axis=1).mean()
    padding = np.zeros((len(turned), d - turned.shape[1]))
    return np.concatenate([turned / (length or 1.0), padding], axis=1)


def read_vectors(file: Location) -> tuple[list[str], np.ndarray]:
    """Names and vectors (n, D), float64, of every row of a Parquet or text file, plain or gzipped.

    Text is separated by tabs, or by commas if the file's name holds ``.csv``.

    The first column holds names, the others numbers; a Parquet file may hold one column of lists instead. The
    first line of a text file is a header if it holds no numbers.

    Raises
    ------
    UserError
        If the file is missing or is not such a table; if a name occurs twice or a number is not finite.
    """
    if not file.exists():
        raise UserError(f"{file}: no such file; give a Parquet or text file of named vectors.")
    try:
        table = _parquet(file) if file.name.endswith((".parquet", ".pq")) else _text(file)
        names = table.iloc[:, 0].astype(str).str.strip().tolist()
        vectors = table.iloc[:, 1:].to_numpy(np.float64)
    except (pa.ArrowException, OSError, EOFError, ValueError, TypeError) as error:  # pandas' are ValueErrors
        reason = str(error).splitlines()[0][:120]
        raise UserError(
            f"{file}: not a table of vectors ({reason}); expected a column of names and columns of numbers, "
            "as many in every row."
        ) from None
    if not vectors.size:
        raise UserError(f"{file}: holds no vectors; expected a column of names and columns of numbers.")
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        raise UserError(
            f"{file}: the vector of '{names[bad[0]]}' has missing or infinite numbers; fix or remove it."
        )
    twice = pd.Series(names)[pd.Series(names).duplicated()]
    if len(twice):
        raise UserError(f"{file}: '{twice.iloc[0]}' has two vectors; keep one.")
    return names, vectors


def _parquet(file: Location) -> pd.DataFrame:
    table = pq.read_table(io.BytesIO(file.read_bytes()))
    lists = [name for name in table.column_names if _is_list(table.schema.field(name).type)]
    if not lists:
        return table.to_pandas()
    others = [name for name in table.column_names if name not in lists]
    if len(lists) > 1 or len(others) != 1:
        raise ValueError(f"columns {', '.join(table.column_names)}")
    vectors = np.stack([np.asarray(row, np.float64) for row in table[lists[0]].to_pylist()])
    return pd.concat([table[others[0]].to_pandas(), pd.DataFrame(vectors)], axis=1)


def _is_list(kind: pa.DataType) -> bool:
    result: bool = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return result


def _text(file: Location) -> pd.DataFrame:
    separator = "," if ".csv" in file.name else "\t"
    text = file.read_bytes()
    if text.startswith(b"\x1f\x8b"):
        text = gzip.decompress(text)
    # names such as NA and nan are names of genes and pathways here, not missing values
    table = pd.read_csv(io.BytesIO(text), sep=separator, header=None, dtype=str, keep_default_na=False)
    numbers = table.iloc[:, 1:].apply(pd.to_numeric, errors="coerce")
    header = bool(len(table)) and bool(numbers.iloc[0].isna().all())
    body = table.iloc[int(header) :].reset_index(drop=True)
    return pd.concat([body.iloc[:, 0], body.iloc[:, 1:].astype(np.float64)], axis=1)
