"""Attention over encoded tokens: keys and values differ from cell to cell.

For a token t of gene g, an edge e = (g, p) and a head::

    logit = gate_e·(query_p · key_t) + shift_e        value = readout_p · value_t

and the activity of pathway p in a cell is ``Σ_heads softmax(logit)·value`` over the cell's tokens with an
edge to p. As in :mod:`tadvae.nn.kernels.edges`, forward works cell by cell and backward gene by gene. Only
the gradients of queries and read-outs get terms from several parts, so each part has its own sum.
"""

from typing import Any

import numpy as np

from tadvae.base.numba_jit import kernel
from tadvae.nn.kernels.exponential import exponential


@kernel
def dot(a: Any, b: Any) -> Any:
    """Inner product of two vectors of the same length."""
    total = a.dtype.type(0.0)
    for i in range(len(a)):
        total += a[i] * b[i]
    return total


@kernel
def attention_forward(
    part: int,
    first_cell: int,
    last_cell: int,
    offsets: Any,  # (B + 1,)
    gene: Any,  # (T,) -1: no edges
    starts: Any,  # (G + 1,)
    pathway: Any,  # (E,)
    query: Any,  # (P, h, w)
    readout: Any,  # (P, h, w)
    key: Any,  # (T, h, w)
    value: Any,  # (T, h, w)
    gate: Any,  # (E,)
    shift: Any,  # (E,)
    has_gate: bool,
    has_shift: bool,
    log_sum: Any,  # (B, P, h) out
    mean: Any,  # (B, P, h) out
    activity: Any,  # (B, P) out
) -> None:
    """Compute activities, and the statistics that backward needs."""
    P, h = log_sum.shape[1:]
    widest = 0
    for b in range(first_cell, last_cell):
        n = 0
        for t in range(offsets[b], offsets[b + 1]):
            if gene[t] >= 0:
                n += starts[gene[t] + 1] - starts[gene[t]]
        widest = max(widest, n)
    # Dot products are expensive, so the logits of one cell are stored between the two passes; one buffer
    # serves all cells of the part.
    logit = np.empty((widest, h), key.dtype)
    total = np.empty((P, h), key.dtype)
    for b in range(first_cell, last_cell):
        top = log_sum[b]  # the largest logit, until the sums are known
        sums = mean[b]
        top[:] = -np.inf
        total[:] = 0.0
        sums[:] = 0.0
        n = 0
        for t in range(offsets[b], offsets[b + 1]):
            if gene[t] < 0:
                continue
            for e in range(starts[gene[t]], starts[gene[t] + 1]):
                p = pathway[e]
                for j in range(h):
                    z = dot(query[p, j], key[t, j])
                    if has_gate:
                        z *= gate[e]
                    if has_shift:
                        z += shift[e]
                    logit[n, j] = z
                    top[p, j] = z if not z <= top[p, j] else top[p, j]
                n += 1
        n = 0
        for t in range(offsets[b], offsets[b + 1]):
            if gene[t] < 0:
                continue
            for e in range(starts[gene[t]], starts[gene[t] + 1]):
                p = pathway[e]
                for j in range(h):
                    logit[n, j] = exponential(logit[n, j] - top[p, j])
                for j in range(h):
                    total[p, j] += logit[n, j]
                    sums[p, j] += logit[n, j] * dot(readout[p, j], value[t, j])
                n += 1
        for p in range(P):
            activity[b, p] = 0.0
            for j in range(h):
                if total[p, j] != 0.0:
                    sums[p, j] /= total[p, j]
                    # Log-sum-exp: backward then gets a weight from one exponential, exp(logit − log_sum).
                    top[p, j] += np.log(total[p, j])
                    activity[b, p] += sums[p, j]


@kernel
def attention_backward(
    part: int,
    first_gene: int,
    last_gene: int,
    token_starts: Any,  # (G + 2,) tokens by gene; the last group has no edges
    token_order: Any,  # (T,)
    cell: Any,  # (T,)
    starts: Any,  # (G + 1,)
    pathway: Any,  # (E,)
    query: Any,  # (P, h, w)
    readout: Any,  # (P, h, w)
    key: Any,  # (T, h, w)
    value: Any,  # (T, h, w)
    gate: Any,  # (E,)
    shift: Any,  # (E,)
    has_gate: bool,
    has_shift: bool,
    log_sum: Any,  # (B, P, h)
    mean: Any,  # (B, P, h)
    d_activity: Any,  # (B, P)
    d_query: Any,  # (parts, P, h, w) out, like the rest zero before
    d_readout: Any,  # (parts, P, h, w) out
    d_key: Any,  # (T, h, w) out
    d_value: Any,  # (T, h, w) out
    d_gate: Any,  # (E,) out
    d_shift: Any,  # (E,) out
) -> None:
    """Compute gradients; every token and every edge belongs to one gene, and so to one part."""
    h, w = query.shape[1:]
    for g in range(first_gene, last_gene):
        for at in range(token_starts[g], token_starts[g + 1]):
            t = token_order[at]
            b = cell[t]
            for e in range(starts[g], starts[g + 1]):
                p = pathway[e]
                for j in range(h):
                    match = dot(query[p, j], key[t, j])
                    z = match * gate[e] if has_gate else match
                    if has_shift:
                        z += shift[e]
                    share = d_activity[b, p] * exponential(z - log_sum[b, p, j])
                    d_logit = share * (dot(readout[p, j], value[t, j]) - mean[b, p, j])
                    if has_shift:
                        d_shift[e] += d_logit
                    if has_gate:
                        d_gate[e] += d_logit * match
                        d_logit *= gate[e]
                    for i in range(w):
                        d_query[part, p, j, i] += d_logit * key[t, j, i]
                        d_readout[part, p, j, i] += share * value[t, j, i]
                        d_key[t, j, i] += d_logit * query[p, j, i]
                        d_value[t, j, i] += share * readout[p, j, i]
