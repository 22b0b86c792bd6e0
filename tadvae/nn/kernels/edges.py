"""Attention without an encoder: logits and values are scalars of an edge times functions of expression.

For a token of gene g with expression x, an edge e = (g, p) and a head::

    logit = x·match_e + shift_e        value = Σ_j φ_j(x)·load_{first(x) + j, e}

and the activity of pathway p in a cell is ``Σ_heads softmax(logit)·value`` over the cell's tokens with an
edge to p. Edges are sorted by gene, with heads innermost: the scalars of one token's edges are contiguous in
memory, and the loops over them are long enough to be vectorised. Scalars of pathways are scattered in memory;
they are gathered in separate loops, so that the arithmetic loops stay contiguous. Where ``every`` gene has
an edge to every pathway, in their order, they are contiguous too.

Forward works cell by cell and stores three numbers for every (cell, pathway, head): the largest logit, the
inverse of the sum of weights, and the mean value. Backward works gene by gene, because then every token and
every edge belongs to exactly one part, so that threads never write to the same gradient. It computes the
weights again from the stored numbers, because storing one per (token, edge, head) would need much memory.
"""

from typing import Any

import numpy as np

from tadvae.base.numba_jit import kernel
from tadvae.nn.kernels.exponential import exponential


@kernel
def widest(starts: Any) -> Any:
    """The largest number of edges of one gene: the size of the buffers, which are allocated once per call."""
    most = 0
    for g in range(len(starts) - 1):
        most = max(most, starts[g + 1] - starts[g])
    return most


@kernel
def span(starts: Any, gene: Any) -> Any:
    """Position of a gene's first edge, and the number of its edges.

    Both are unsigned, as all indices of the inner loops: for signed indices numba tests whether they are
    negative and count from the end, which prevents vectorisation. All indices of a sum must be unsigned:
    numba adds a signed and an unsigned integer as floats.
    """
    first = np.uint64(starts[gene])
    return first, np.uint64(starts[gene + 1]) - first


@kernel
def logits(
    result: Any, n: Any, at: Any, x: Any, match: Any, shift: Any, has_match: bool, has_shift: bool
) -> None:
    """Write ``x·match + shift`` of n edges and heads, from position ``at``, into ``result``."""
    if has_match:
        for i in range(n):
            result[i] = x * match[at + i]
    else:
        for i in range(n):
            result[i] = 0.0
    if has_shift:
        for i in range(n):
            result[i] += shift[at + i]


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
    load: Any,  # (n_basis, E, h)
    has_match: bool,
    has_shift: bool,
    every: Any,  # True or None; numba compiles a kernel for each
    top: Any,  # (B, P, h) out
    inverse: Any,  # (B, P, h) out
    mean: Any,  # (B, P, h) out
    activity: Any,  # (B, P) out
) -> None:
    """Compute activities, and the statistics that backward needs."""
    P, h, J = np.uint64(top.shape[1]), np.uint64(top.shape[2]), np.uint64(phi.shape[1])
    match, shift = match.reshape(-1), shift.reshape(-1)
    load = load.reshape(load.shape[0], -1)  # (n_basis, E h)
    weight = np.empty(widest(starts) * h, x.dtype)
    value = np.empty(widest(starts) * h, x.dtype)
    for b in range(first_cell, last_cell):
        top_b, total, sums = top[b].reshape(-1), inverse[b].reshape(-1), mean[b].reshape(-1)
        top_b[:] = -np.inf
        total[:] = 0.0
        sums[:] = 0.0
        # First pass: the largest logit of every pathway and head. The second pass subtracts it, so that exp
        # cannot overflow; it computes the logits again, which is cheaper than storing them.
        for t in range(offsets[b], offsets[b + 1]):
            if gene[t] < 0:
                continue
            e0, n = span(starts, gene[t])
            logits(weight, n * h, e0 * h, x[t], match, shift, has_match, has_shift)
            # not "z > top": a NaN has to become the maximum, so that a diverged model is noticed
            if every is not None:
                for i in range(n * h):
                    top_b[i] = weight[i] if not weight[i] <= top_b[i] else top_b[i]
            else:
                for i in range(n):
                    at = np.uint64(pathway[e0 + i]) * h
                    for j in range(h):
                        z = weight[i * h + j]
                        top_b[at + j] = z if not z <= top_b[at + j] else top_b[at + j]
        for t in range(offsets[b], offsets[b + 1]):
            if gene[t] < 0:
                continue
            e0, n = span(starts, gene[t])
            # `value` holds the gathered maxima until exp has used them: one buffer less in the cache.
            if every is not None:
                for i in range(n * h):
                    value[i] = top_b[i]
            else:
                for i in range(n):
                    at = np.uint64(pathway[e0 + i]) * h
                    for j in range(h):
                        value[i * h + j] = top_b[at + j]
            logits(weight, n * h, e0 * h, x[t], match, shift, has_match, has_shift)
            for i in range(n * h):
                weight[i] = exponential(weight[i] - value[i])
                value[i] = 0.0
            for k in range(J):
                row = load[np.uint64(first[t]) + k]
                for i in range(n * h):
                    value[i] += phi[t, k] * row[e0 * h + i]
            if every is not None:
                for i in range(n * h):
                    total[i] += weight[i]
                    sums[i] += weight[i] * value[i]
            else:
                for i in range(n):
                    at = np.uint64(pathway[e0 + i]) * h
                    for j in range(h):
                        total[at + j] += weight[i * h + j]
                        sums[at + j] += weight[i * h + j] * value[i * h + j]
        for p in range(P):
            activity[b, p] = 0.0
            for j in range(p * h, p * h + h):
                # A pathway without tokens in this cell has no weights; its activity stays zero, not NaN.
                if total[j] != 0.0:
                    total[j] = 1.0 / total[j]
                    sums[j] *= total[j]
                    activity[b, p] += sums[j]


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
    load: Any,  # (n_basis, E, h)
    has_match: bool,
    has_shift: bool,
    needs_x: bool,
    every: Any,  # True or None; numba compiles a kernel for each
    top: Any,  # (B, P h)
    mean: Any,  # (B, P h) negative
    per_weight: Any,  # (B, P h) gradient of an activity over the sum of its weights
    h: Any,
    d_x: Any,  # (T,) out; like d_phi only where it is needed
    d_phi: Any,  # (T, J) out
    d_match: Any,  # (E, h) out, like the rest zero before
    d_shift: Any,  # (E, h) out
    d_load: Any,  # (n_basis, E, h) out
) -> None:
    """Compute gradients; every token and every edge belongs to one gene, and so to one part."""
    h, J = np.uint64(h), np.uint64(phi.shape[1])
    match, d_match = match.reshape(-1), d_match.reshape(-1)
    shift, d_shift = shift.reshape(-1), d_shift.reshape(-1)
    load, d_load = load.reshape(load.shape[0], -1), d_load.reshape(load.shape[0], -1)  # (n_basis, E h)
    share = np.empty(widest(starts) * h, x.dtype)
    scale, value = np.empty_like(share), np.empty_like(share)
    for g in range(first_gene, last_gene):
        e0, n = span(starts, g)
        for place in range(token_starts[g], token_starts[g + 1]):
            t = np.uint64(token_order[place])
            b = np.uint64(cell[t])
            if every is not None:
                for i in range(n * h):
                    value[i] = top[b, i]
                    scale[i] = per_weight[b, i]
            else:
                for i in range(n):
                    at = np.uint64(pathway[e0 + i]) * h
                    for j in range(h):
                        value[i * h + j] = top[b, at + j]
                        scale[i * h + j] = per_weight[b, at + j]
            logits(share, n * h, e0 * h, x[t], match, shift, has_match, has_shift)
            for i in range(n * h):
                share[i] = exponential(share[i] - value[i]) * scale[i]
            # The gradient of a softmax logit is weight · (value − mean value) · output gradient; the sum
            # below therefore starts at −mean.
            if every is not None:
                for i in range(n * h):
                    value[i] = mean[b, i]
            else:
                for i in range(n):
                    at = np.uint64(pathway[e0 + i]) * h
                    for j in range(h):
                        value[i * h + j] = mean[b, at + j]
            for k in range(J):
                basis = np.uint64(first[t]) + k
                row, d_row = load[basis], d_load[basis]
                for i in range(n * h):
                    value[i] += phi[t, k] * row[e0 * h + i]
                    d_row[e0 * h + i] += phi[t, k] * share[i]
                if needs_x:
                    for i in range(n * h):
                        d_phi[t, k] += share[i] * row[e0 * h + i]
            for i in range(n * h):
                share[i] *= value[i]  # now the gradient of the logit
            if has_match:
                for i in range(n * h):
                    d_match[e0 * h + i] += x[t] * share[i]
                if needs_x:
                    for i in range(n * h):
                        d_x[t] += share[i] * match[e0 * h + i]
            if has_shift:
                for i in range(n * h):
                    d_shift[e0 * h + i] += share[i]


@kernel
def dot_forward(
    part: int,
    first_gene: int,
    last_gene: int,
    starts: Any,  # (G + 1,)
    pathway: Any,  # (E,)
    left: Any,  # (P, h, w)
    right: Any,  # (G, n_basis, h, w)
    result: Any,  # (n_basis, E, h) out
) -> None:
    """Compute ``left_p · right_g`` of every edge, head by head."""
    n_basis, h, w = right.shape[1:]
    for g in range(first_gene, last_gene):
        for e in range(starts[g], starts[g + 1]):
            p = pathway[e]
            for k in range(n_basis):
                for j in range(h):
                    total = result.dtype.type(0.0)
                    for i in range(w):
                        total += left[p, j, i] * right[g, k, j, i]
                    result[k, e, j] = total


@kernel
def dot_backward_right(
    part: int,
    first_gene: int,
    last_gene: int,
    starts: Any,  # (G + 1,)
    pathway: Any,  # (E,)
    left: Any,  # (P, h, w)
    d_result: Any,  # (n_basis, E, h)
    d_right: Any,  # (G, n_basis, h, w) out, zero before
) -> None:
    """Gradient of the genes: parts are spans of genes, so that each gradient has one writer."""
    n_basis, h, w = d_right.shape[1:]
    for g in range(first_gene, last_gene):
        for e in range(starts[g], starts[g + 1]):
            p = pathway[e]
            for k in range(n_basis):
                for j in range(h):
                    for i in range(w):
                        d_right[g, k, j, i] += d_result[k, e, j] * left[p, j, i]


@kernel
def dot_backward_left(
    part: int,
    first_pathway: int,
    last_pathway: int,
    edge_starts: Any,  # (P + 1,) edges by pathway
    edge_order: Any,  # (E,)
    edge_gene: Any,  # (E,)
    right: Any,  # (G, n_basis, h, w)
    d_result: Any,  # (n_basis, E, h)
    d_left: Any,  # (P, h, w) out, zero before
) -> None:
    """Gradient of the pathways: parts are spans of pathways, so that each gradient has one writer."""
    n_basis, h, w = right.shape[1:]
    for p in range(first_pathway, last_pathway):
        for at in range(edge_starts[p], edge_starts[p + 1]):
            e = edge_order[at]
            g = edge_gene[e]
            for k in range(n_basis):
                for j in range(h):
                    for i in range(w):
                        d_left[p, j, i] += d_result[k, e, j] * right[g, k, j, i]
