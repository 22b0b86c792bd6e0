"""Sums along edges, the mean of member rows, and rows of genes times the factors of tokens."""

from typing import Any

import numpy as np

from tadvae.base.numba_jit import kernel


@kernel
def linear_forward(
    part: int,
    first_cell: int,
    last_cell: int,
    offsets: Any,  # (B + 1,)
    gene: Any,  # (T,) -1: no edges
    first: Any,  # (T,)
    phi: Any,  # (T, J)
    starts: Any,  # (G + 1,)
    pathway: Any,  # (E,)
    weight: Any,  # (E, n_basis)
    activity: Any,  # (B, P) out, zero before
) -> None:
    """``Σ_t Σ_j φ_j(x_t)·weight_{e, first(x_t) + j}`` over a cell's tokens with an edge to p."""
    for b in range(first_cell, last_cell):
        for t in range(offsets[b], offsets[b + 1]):
            if gene[t] < 0:
                continue
            for e in range(starts[gene[t]], starts[gene[t] + 1]):
                for k in range(phi.shape[1]):
                    activity[b, pathway[e]] += phi[t, k] * weight[e, first[t] + k]


@kernel
def linear_backward(
    part: int,
    first_gene: int,
    last_gene: int,
    token_starts: Any,  # (G + 2,) tokens by gene; the last group has no edges
    token_order: Any,  # (T,)
    cell: Any,  # (T,)
    first: Any,  # (T,)
    phi: Any,  # (T, J)
    starts: Any,  # (G + 1,)
    pathway: Any,  # (E,)
    weight: Any,  # (E, n_basis)
    d_activity: Any,  # (B, P)
    d_phi: Any,  # (T, J) out, zero before
    d_weight: Any,  # (E, n_basis) out, zero before
) -> None:
    """Compute gradients; every token and every edge belongs to one gene, and so to one part."""
    for g in range(first_gene, last_gene):
        for at in range(token_starts[g], token_starts[g + 1]):
            t = token_order[at]
            for e in range(starts[g], starts[g + 1]):
                grad = d_activity[cell[t], pathway[e]]
                for k in range(phi.shape[1]):
                    d_weight[e, first[t] + k] += grad * phi[t, k]
                    d_phi[t, k] += grad * weight[e, first[t] + k]


@kernel
def sum_rows(
    part: int,
    first: int,
    last: int,
    starts: Any,  # (n + 1,)
    row: Any,  # (M,)
    weight: Any,  # (M,)
    rows: Any,  # (m, d)
    result: Any,  # (n, d) out, zero before
) -> None:
    """``result_i = Σ weight_k·rows[row_k]`` for k from ``starts[i]`` to ``starts[i + 1]``."""
    for i in range(first, last):
        total = result[i]
        for at in range(starts[i], starts[i + 1]):
            source, factor = rows[row[at]], weight[at]
            for j in range(len(total)):
                total[j] += factor * source[j]


@kernel
def scaled_rows_forward(
    part: int,
    first_token: int,
    last_token: int,
    gene: Any,  # (T,)
    factor: Any,  # (T,)
    table: Any,  # (G, d)
    constant: Any,  # (d,)
    rows: Any,  # (T, d) out
) -> None:
    """``rows_t = factor_t · table[gene_t] + constant``."""
    for t in range(first_token, last_token):
        source, row, f = table[gene[t]], rows[t], factor[t]
        for j in range(len(row)):
            row[j] = f * source[j] + constant[j]


@kernel
def scaled_rows_backward(
    part: int,
    first_gene: int,
    last_gene: int,
    token_starts: Any,  # (G + 1,) tokens by gene
    token_order: Any,  # (T,)
    factor: Any,  # (T,)
    table: Any,  # (G, d)
    d_rows: Any,  # (T, d)
    d_factor: Any,  # (T,) out
    d_table: Any,  # (G, d) out, zero before
    d_constant: Any,  # (G, d) out, zero before: the summand's gradient from each gene's tokens
) -> None:
    """Compute gradients; every token belongs to one gene, and so to one part."""
    for g in range(first_gene, last_gene):
        for at in range(token_starts[g], token_starts[g + 1]):
            t = token_order[at]
            grad, source, f, dot = d_rows[t], table[g], factor[t], np.float64(0.0)
            for j in range(len(grad)):
                dot += grad[j] * source[j]
                d_table[g, j] += f * grad[j]
                d_constant[g, j] += grad[j]
            d_factor[t] = dot


@kernel
def group(keys: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Sort items by key: position of each key's first item (n + 1,), and the items in order of their keys."""
    # A counting sort: linear in the number of items, and stable, so that sums over a key have a fixed order.
    starts = np.zeros(n + 1, np.int64)
    for key in keys:
        starts[key + 1] += 1
    for i in range(n):
        starts[i + 1] += starts[i]
    at = starts[:-1].copy()
    order = np.empty(len(keys), np.int64)
    for i in range(len(keys)):
        order[at[keys[i]]] = i
        at[keys[i]] += 1
    return starts, order
