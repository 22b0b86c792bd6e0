"""Attention whose logits are numbers of an edge times functions of expression (no encoder).

For a token of gene g with expression x, an edge e = (g, p) and a head::

    logit = x·match_e + shift_e        value = Σ_j φ_j(x)·load_{e, first(x) + j}

and the activity of pathway p in a cell is ``Σ_heads softmax(logit)·value`` over the cell's tokens with an
edge to p. Edges are sorted by gene, so those of one token lie together, heads innermost. Forward works
cell by cell and keeps the log-sum and the mean value of every (cell, pathway, head); backward works gene
by gene, where tokens and edges each have one owner, and computes the weights again.
"""

from typing import Any

import numpy as np

from tadvae.nn.kernels.jit import exponential, kernel


@kernel
def attention_forward(
    part: int,
    first_cell: int,
    last_cell: int,
    offsets: Any,  # (B + 1,)
    gene: Any,  # (T,) -1: no edges
    x: Any,  # (T,)
    first: Any,  # (T,)
    phi: Any,  # (T, J)
    starts: Any,  # (G + 1,)
    pathway: Any,  # (E,)
    match: Any,  # (E, h)
    shift: Any,  # (E, h)
    load: Any,  # (E, n_basis, h)
    has_match: bool,
    has_shift: bool,
    log_sum: Any,  # (B, P, h) out
    mean: Any,  # (B, P, h) out
    activity: Any,  # (B, P) out
) -> None:
    """Activities, and the statistics that backward needs."""
    P, h = log_sum.shape[1:]
    J = phi.shape[1]
    widest = 0
    for g in range(len(starts) - 1):
        widest = max(widest, starts[g + 1] - starts[g])
    logit = np.empty((widest, h), x.dtype)
    total = np.empty((P, h), x.dtype)
    for b in range(first_cell, last_cell):
        top = log_sum[b]  # the largest logit, until the sums are known
        sums = mean[b]
        top[:] = -np.inf
        total[:] = 0.0
        sums[:] = 0.0
        for t in range(offsets[b], offsets[b + 1]):
            if gene[t] < 0:
                continue
            for e in range(starts[gene[t]], starts[gene[t] + 1]):
                p = pathway[e]
                for j in range(h):
                    z = x.dtype.type(0.0)
                    if has_match:
                        z += x[t] * match[e, j]
                    if has_shift:
                        z += shift[e, j]
                    top[p, j] = z if not z <= top[p, j] else top[p, j]
        for t in range(offsets[b], offsets[b + 1]):
            if gene[t] < 0:
                continue
            e0, n = starts[gene[t]], starts[gene[t] + 1] - starts[gene[t]]
            for i in range(n):
                p = pathway[e0 + i]
                for j in range(h):
                    z = -top[p, j]
                    if has_match:
                        z += x[t] * match[e0 + i, j]
                    if has_shift:
                        z += shift[e0 + i, j]
                    logit[i, j] = z
            for i in range(n):
                for j in range(h):
                    logit[i, j] = exponential(logit[i, j])
            for i in range(n):
                p = pathway[e0 + i]
                for j in range(h):
                    total[p, j] += logit[i, j]
                for k in range(J):
                    for j in range(h):
                        sums[p, j] += logit[i, j] * phi[t, k] * load[e0 + i, first[t] + k, j]
        for p in range(P):
            activity[b, p] = 0.0
            for j in range(h):
                if total[p, j] != 0.0:
                    sums[p, j] /= total[p, j]
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
    x: Any,  # (T,)
    first: Any,  # (T,)
    phi: Any,  # (T, J)
    starts: Any,  # (G + 1,)
    pathway: Any,  # (E,)
    match: Any,  # (E, h)
    shift: Any,  # (E, h)
    load: Any,  # (E, n_basis, h)
    has_match: bool,
    has_shift: bool,
    log_sum: Any,  # (B, P, h)
    mean: Any,  # (B, P, h)
    d_activity: Any,  # (B, P)
    d_x: Any,  # (T,) out
    d_phi: Any,  # (T, J) out
    d_match: Any,  # (E, h) out, like the rest zero before
    d_shift: Any,  # (E, h) out
    d_load: Any,  # (E, n_basis, h) out
) -> None:
    """Gradients; every token and every edge belongs to one gene, so to one part."""
    h = log_sum.shape[2]
    J = phi.shape[1]
    widest = 0
    for g in range(len(starts) - 1):
        widest = max(widest, starts[g + 1] - starts[g])
    weight = np.empty((widest, h), x.dtype)
    for g in range(first_gene, last_gene):
        e0, n = starts[g], starts[g + 1] - starts[g]
        for at in range(token_starts[g], token_starts[g + 1]):
            t = token_order[at]
            b = cell[t]
            for i in range(n):
                p = pathway[e0 + i]
                for j in range(h):
                    z = -log_sum[b, p, j]
                    if has_match:
                        z += x[t] * match[e0 + i, j]
                    if has_shift:
                        z += shift[e0 + i, j]
                    weight[i, j] = z
            for i in range(n):
                for j in range(h):
                    weight[i, j] = exponential(weight[i, j])
            for i in range(n):
                p = pathway[e0 + i]
                grad = d_activity[b, p]
                for j in range(h):
                    share = grad * weight[i, j]
                    value = -mean[b, p, j]
                    for k in range(J):
                        value += phi[t, k] * load[e0 + i, first[t] + k, j]
                        d_load[e0 + i, first[t] + k, j] += share * phi[t, k]
                        d_phi[t, k] += share * load[e0 + i, first[t] + k, j]
                    d_logit = share * value
                    if has_match:
                        d_match[e0 + i, j] += d_logit * x[t]
                        d_x[t] += d_logit * match[e0 + i, j]
                    if has_shift:
                        d_shift[e0 + i, j] += d_logit


@kernel
def dot_forward(
    part: int,
    first_gene: int,
    last_gene: int,
    starts: Any,  # (G + 1,)
    pathway: Any,  # (E,)
    left: Any,  # (P, h, w)
    right: Any,  # (G, n_basis, h, w)
    result: Any,  # (E, n_basis, h) out
) -> None:
    """``left_p · right_g`` of every edge, head by head."""
    n_basis, h, w = right.shape[1:]
    for g in range(first_gene, last_gene):
        for e in range(starts[g], starts[g + 1]):
            p = pathway[e]
            for k in range(n_basis):
                for j in range(h):
                    total = result.dtype.type(0.0)
                    for i in range(w):
                        total += left[p, j, i] * right[g, k, j, i]
                    result[e, k, j] = total


@kernel
def dot_backward_right(
    part: int,
    first_gene: int,
    last_gene: int,
    starts: Any,  # (G + 1,)
    pathway: Any,  # (E,)
    left: Any,  # (P, h, w)
    d_result: Any,  # (E, n_basis, h)
    d_right: Any,  # (G, n_basis, h, w) out, zero before
) -> None:
    """Gradient of the genes' side."""
    n_basis, h, w = d_right.shape[1:]
    for g in range(first_gene, last_gene):
        for e in range(starts[g], starts[g + 1]):
            p = pathway[e]
            for k in range(n_basis):
                for j in range(h):
                    for i in range(w):
                        d_right[g, k, j, i] += d_result[e, k, j] * left[p, j, i]


@kernel
def dot_backward_left(
    part: int,
    first_pathway: int,
    last_pathway: int,
    edge_starts: Any,  # (P + 1,) edges by pathway
    edge_order: Any,  # (E,)
    edge_gene: Any,  # (E,)
    right: Any,  # (G, n_basis, h, w)
    d_result: Any,  # (E, n_basis, h)
    d_left: Any,  # (P, h, w) out, zero before
) -> None:
    """Gradient of the pathways' side."""
    n_basis, h, w = right.shape[1:]
    for p in range(first_pathway, last_pathway):
        for at in range(edge_starts[p], edge_starts[p + 1]):
            e = edge_order[at]
            g = edge_gene[e]
            for k in range(n_basis):
                for j in range(h):
                    for i in range(w):
                        d_left[p, j, i] += d_result[e, k, j] * right[g, k, j, i]
