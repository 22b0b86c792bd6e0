"""Attention of pathways over genes along edges: fused kernels on the CPU, plain torch elsewhere.

Without an encoder, ``q·k`` and the read-out of a value depend only on the edge, not on the cell:
:func:`edge_dot` computes them once per step, and :func:`edge_attention` needs a few scalars for each
(token, edge) pair. With an encoder, :func:`token_attention` takes keys and values of every token.

Every function has two equivalent paths: numba on CPU tensors, and torch (gather, scatter) on GPU tensors
and wherever ``numba`` is false. On a GPU :func:`token_attention` has a third, in Triton. Inputs in half
precision are converted to float32 first. The kernels keep only (B, P, h) statistics for backward; no path
creates a (B, P, G) tensor.
"""

from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from tadvae.nn.edges import ActiveEdges, CellEdges, EdgeTable, softmax_by_slot, sum_by_slot
from tadvae.nn.packed import PackedCells
from tadvae.nn.precision import at_least_single
from tadvae.nn.tokens import Basis


@cache
def kernels() -> ModuleType | None:
    """The kernels as autograd functions; None if numba cannot be imported."""
    try:
        from tadvae.nn.kernels import functions
    except ImportError:
        return None
    return functions


@cache
def gpu_kernels() -> ModuleType | None:
    """The kernels of GPUs as autograd functions; None if Triton cannot be imported."""
    try:
        from tadvae.nn.kernels import triton_tokens
    except ImportError:
        return None
    return triton_tokens


def edge_dot(left: Tensor, right: Tensor, edges: ActiveEdges, numba: bool = True) -> Tensor:
    """``left_p · right_g`` for every edge (g, p), head by head.

    Parameters
    ----------
    left : (P, h, w)
        Vectors of the pathways, per head.
    right : (G, n_basis, h, w)
        Vectors of the genes, per basis function and head.

    Returns
    -------
    (n_basis, E, h)
    """
    left, right = at_least_single(left), at_least_single(right)
    fused = kernels_for(numba, left, right)
    if fused is not None:
        result: Tensor = fused.EdgeDot.apply(left, right, edges)
        return result
    return (left[edges.pathway] * right[edges.gene].transpose(0, 1)).sum(-1)


def edge_attention(
    cells: PackedCells,
    edges: ActiveEdges,
    basis: Basis,
    match: Tensor | None,
    shift: Tensor | None,
    load: Tensor,
    numba: bool = True,
) -> Tensor:
    """``Σ_heads softmax(x·match + shift)·Σ_b φ_b(x)·load_b`` of every cell and pathway, (B, P).

    Parameters
    ----------
    match, shift : (E, h) or None
        Slope and intercept of the logits of each edge; None: zero.
    load : (n_basis, E, h)
        Read-out of the value of each edge, per basis function.
    """
    x, phi, load = at_least_single(cells.values), at_least_single(basis.phi), at_least_single(load)
    match, shift = at_least_single(match), at_least_single(shift)
    fused = kernels_for(numba, x, phi, load, match, shift)
    if fused is not None:
        result: Tensor = fused.EdgeAttention.apply(x, phi, match, shift, load, basis.first, cells, edges)
        return result
    pairs = edges.expand(cells)
    logits = edge_logits(x, match, shift, pairs, like=load)
    value = edge_values(Basis(basis.first, phi), load, pairs)  # (N, h)
    return _attend(logits, value, pairs, cells)


def edge_logits(
    x: Tensor, match: Tensor | None, shift: Tensor | None, pairs: CellEdges, like: Tensor
) -> Tensor:
    """``x·match + shift`` of every pair, (N, h)."""
    logits = like.new_zeros(len(pairs.edge), like.shape[-1])
    if match is not None:
        logits = logits + x[pairs.token][:, None] * match[pairs.edge]
    return logits if shift is None else logits + shift[pairs.edge]


def edge_values(basis: Basis, load: Tensor, pairs: CellEdges) -> Tensor:
    """``Σ_b φ_b(x)·load_b`` of every pair, (N, h)."""
    value = load.new_zeros(len(pairs.edge), load.shape[-1])
    for j in range(basis.phi.shape[1]):
        function = basis.first[pairs.token] + j
        value = value + basis.phi[pairs.token, j][:, None] * load[function, pairs.edge]
    return value


def edge_sum(
    cells: PackedCells, edges: ActiveEdges, basis: Basis, weight: Tensor, numba: bool = True
) -> Tensor:
    """``Σ_b φ_b(x)·weight_b`` summed over the tokens of every cell and pathway, (B, P).

    Parameters
    ----------
    weight : (E, n_basis)
        Weight of each edge, per basis function.
    """
    phi, weight = at_least_single(basis.phi), at_least_single(weight)
    fused = kernels_for(numba, phi, weight)
    if fused is not None:
        result: Tensor = fused.EdgeSum.apply(phi, weight, basis.first, cells, edges)
        return result
    pairs = edges.expand(cells)
    value = edge_values(Basis(basis.first, phi), weight.T[..., None], pairs)[:, 0]
    return sum_by_slot(value, pairs).view(cells.n_cells, -1)


def token_attention(
    cells: PackedCells,
    edges: ActiveEdges,
    query: Tensor,
    readout: Tensor,
    key: Tensor,
    value: Tensor,
    gate: Tensor | None = None,
    shift: Tensor | None = None,
    numba: bool = True,
) -> Tensor:
    """``Σ_heads softmax(gate·(q·k) + shift)·(o·v)`` of every cell and pathway, (B, P).

    Parameters
    ----------
    query, readout : (P, h, w)
        Vectors of the pathways; the scale 1/√w is included in ``query``.
    key, value : (T, h, w)
        Vectors of the tokens.
    gate, shift : (E,) or None
        Factor and summand of the logits of each edge; None: one, and zero.
    """
    query, readout, key, value = (
        at_least_single(query),
        at_least_single(readout),
        at_least_single(key),
        at_least_single(value),
    )
    gate, shift = at_least_single(gate), at_least_single(shift)
    fused = kernels_for(numba, query, readout, key, value, gate, shift)
    if fused is not None:
        result: Tensor = fused.TokenAttention.apply(query, readout, key, value, gate, shift, cells, edges)
        return result
    if numba and edges.order is not None and (compiled := gpu_kernels()) is not None:
        result = compiled.TokenAttention.apply(query, readout, key, value, gate, shift, cells, edges.order)
        return result
    pairs = edges.expand(cells)
    return _attend(*token_pairs(edges, pairs, query, readout, key, value, gate, shift), pairs, cells)


def token_pairs(
    edges: ActiveEdges,
    pairs: CellEdges,
    query: Tensor,
    readout: Tensor,
    key: Tensor,
    value: Tensor,
    gate: Tensor | None,
    shift: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Logits and read-out values of every pair, (N, h) each; arguments as in :func:`token_attention`."""
    pathway = edges.pathway[pairs.edge]  # (N,)
    logits = (query[pathway] * key[pairs.token]).sum(-1)
    if gate is not None:
        logits = logits * gate[pairs.edge][:, None]
    if shift is not None:
        logits = logits + shift[pairs.edge][:, None]
    return logits, (readout[pathway] * value[pairs.token]).sum(-1)


def member_mean(rows: Tensor, table: EdgeTable, numba: bool = True) -> Tensor:
    """Mean of the rows (G, d) of every pathway's members, (P, d); zero where there are none."""
    fused = kernels_for(numba, rows)
    if fused is not None:
        total = fused.MemberSum.apply(rows, table)
    else:
        n, pathways = len(table.member_gene), torch.arange(table.n_pathways, device=rows.device)
        pathway = torch.repeat_interleave(pathways, table.size, output_size=n)
        total = rows.new_zeros(table.n_pathways, rows.shape[1])
        total = total.index_add(0, pathway, rows[table.member_gene])
    result: Tensor = total / table.size.clamp(min=1)[:, None]
    return result


def scaled_rows(table: Tensor, gene: Tensor, factor: Tensor, constant: Tensor, numba: bool = True) -> Tensor:
    """``f_t·u_g + a`` of every token: its factor times the row of its gene, plus a summand, (T, d).

    Parameters
    ----------
    table : (G, d)
        Rows of the genes.
    gene : (T,) int64
        Row of each token's gene.
    factor : (T,)
        Factor of each token.
    constant : (d,)
        Summand of all tokens.
    """
    fused = kernels_for(numba, table, factor, constant)
    if fused is not None:
        result: Tensor = fused.ScaledRows.apply(table, gene, factor, constant)
        return result
    return torch.addcmul(constant, table.index_select(0, gene), factor[:, None])


def _attend(logits: Tensor, value: Tensor, pairs: CellEdges, cells: PackedCells) -> Tensor:
    weight = softmax_by_slot(logits, pairs)  # (N, h)
    return sum_by_slot((weight * value).sum(-1), pairs).view(cells.n_cells, -1)


def kernels_for(wanted: bool, *tensors: Tensor | None) -> ModuleType | None:
    """The kernels, if they are wanted, available, and support the device and type of the tensors."""
    # Tensors of mixed types go to torch: the kernels are compiled for one type, and torch promotes types.
    first = next(tensor for tensor in tensors if tensor is not None)
    fit = first.device.type == "cpu" and first.dtype in (torch.float32, torch.float64)
    same = all(tensor is None or tensor.dtype == first.dtype for tensor in tensors)
    return kernels() if wanted and fit and same else None
