"""The kernels as differentiable torch functions; shapes are those of :mod:`tadvae.nn.attention`."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tadvae.nn.edges import ActiveEdges, EdgeTable
from tadvae.nn.kernels import edges as edge_kernels
from tadvae.nn.kernels import sums, tokens
from tadvae.nn.kernels.sums import group
from tadvae.nn.kernels.threads import cut, run
from tadvae.nn.packed import PackedCells

Gradients = tuple[Tensor | None, ...]


class EdgeDot(torch.autograd.Function):
    """``left_p · right_g`` of every edge."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor, edges: ActiveEdges) -> Tensor:
        """Dot products, shape (n_basis, E, h)."""
        ctx.save_for_backward(left, right)
        ctx.edges = edges
        result = right.new_empty(right.shape[1], edges.n_edges, right.shape[2])
        starts, pathway = edges.starts.numpy(), edges.pathway.numpy()
        run(edge_kernels.dot_forward, cut(starts), starts, pathway, *_arrays(left, right, result))
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_result: Tensor) -> Gradients:
        """Gradients of left (pathway by pathway) and right (gene by gene)."""
        edges: ActiveEdges = ctx.edges
        left, right, grad = _arrays(*ctx.saved_tensors, d_result)
        d_left, d_right = np.zeros_like(left), np.zeros_like(right)
        starts, pathway = edges.starts.numpy(), edges.pathway.numpy()
        if ctx.needs_input_grad[0]:
            by_pathway, order = group(pathway, edges.n_pathways)
            own = by_pathway, order, edges.gene.numpy()
            run(edge_kernels.dot_backward_left, cut(by_pathway), *own, right, grad, d_left)
        if ctx.needs_input_grad[1]:
            run(edge_kernels.dot_backward_right, cut(starts), starts, pathway, left, grad, d_right)
        return torch.from_numpy(d_left), torch.from_numpy(d_right), None


class EdgeAttention(torch.autograd.Function):
    """Attention with scalars per edge (no encoder)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        phi: Tensor,
        match: Tensor | None,
        shift: Tensor | None,
        load: Tensor,
        first: Tensor,
        cells: PackedCells,
        edges: ActiveEdges,
    ) -> Tensor:
        """Activities, shape (B, P)."""
        shape = cells.n_cells, edges.n_pathways, load.shape[-1]
        saved = [x.new_empty(shape) for _ in range(3)]
        activity = x.new_empty(shape[:2])
        ctx.save_for_backward(x, phi, match, shift, load, first, *saved)
        ctx.cells, ctx.edges = cells, edges
        offsets = cells.offsets.numpy()
        own = *_or_empty(load, 2, match, shift), load
        arrays = _arrays(edges.token_gene, x, first, phi, edges.starts, edges.pathway, *own)
        has = match is not None, shift is not None
        out = _arrays(*saved, activity)
        run(edge_kernels.attention_forward, cut(offsets), offsets, *arrays, *has, edges.every or None, *out)
        return activity

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_activity: Tensor) -> Gradients:
        """Gradients of x, phi, match, shift and load."""
        x, phi, match, shift, load, first, top, inverse, mean = ctx.saved_tensors
        edges: ActiveEdges = ctx.edges
        by_gene, order, bounds = _by_gene(edges)
        statistics = _arrays(*(each.flatten(1) for each in (top, -mean, d_activity[..., None] * inverse)))
        own = *_or_empty(load, 2, match, shift), load
        inputs = _arrays(ctx.cells.cell, x, first, phi, edges.starts, edges.pathway, *own)
        has = match is not None, shift is not None
        needs_x = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        out = [np.zeros_like(array) for array in _arrays(x, phi, *own)]
        arguments = *inputs, *has, needs_x, edges.every or None, *statistics, top.shape[2], *out
        run(edge_kernels.attention_backward, bounds, by_gene, order, *arguments)
        d_x, d_phi, d_match, d_shift, d_load = map(torch.from_numpy, out)
        return d_x, d_phi, d_match if has[0] else None, d_shift if has[1] else None, d_load, None, None, None


class EdgeSum(torch.autograd.Function):
    """Weighted sums with weights per edge."""

    @staticmethod
    def forward(
        ctx: Any, phi: Tensor, weight: Tensor, first: Tensor, cells: PackedCells, edges: ActiveEdges
    ) -> Tensor:
        """Activities, shape (B, P)."""
        ctx.save_for_backward(phi, weight, first)
        ctx.cells, ctx.edges = cells, edges
        activity = phi.new_zeros(cells.n_cells, edges.n_pathways)
        offsets = cells.offsets.numpy()
        arrays = _arrays(edges.token_gene, first, phi, edges.starts, edges.pathway, weight, activity)
        run(sums.linear_forward, cut(offsets), offsets, *arrays)
        return activity

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_activity: Tensor) -> Gradients:
        """Gradients of phi and weight."""
        phi, weight, first = ctx.saved_tensors
        edges: ActiveEdges = ctx.edges
        by_gene, order, bounds = _by_gene(edges)
        arrays = _arrays(ctx.cells.cell, first, phi, edges.starts, edges.pathway, weight, d_activity)
        d_phi, d_weight = (np.zeros_like(array) for array in _arrays(phi, weight))
        run(sums.linear_backward, bounds, by_gene, order, *arrays, d_phi, d_weight)
        return torch.from_numpy(d_phi), torch.from_numpy(d_weight), None, None, None


class TokenAttention(torch.autograd.Function):
    """Attention with keys and values per token (with an encoder)."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        readout: Tensor,
        key: Tensor,
        value: Tensor,
        gate: Tensor | None,
        shift: Tensor | None,
        cells: PackedCells,
        edges: ActiveEdges,
    ) -> Tensor:
        """Activities, shape (B, P)."""
        shape = cells.n_cells, edges.n_pathways, query.shape[1]
        log_sum, mean, activity = key.new_empty(shape), key.new_empty(shape), key.new_empty(shape[:2])
        ctx.save_for_backward(query, readout, key, value, gate, shift, log_sum, mean)
        ctx.cells, ctx.edges = cells, edges
        offsets = cells.offsets.numpy()
        arrays = _arrays(edges.token_gene, edges.starts, edges.pathway, query, readout, key, value)
        own = *_arrays(*_or_empty(query, 1, gate, shift)), gate is not None, shift is not None
        run(
            tokens.attention_forward,
            cut(offsets), offsets, *arrays, *own, *_arrays(log_sum, mean, activity),
        )  # fmt: skip
        return activity

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_activity: Tensor) -> Gradients:
        """Gradients of query, readout, key, value, gate and shift."""
        query, readout, key, value, gate, shift, log_sum, mean = ctx.saved_tensors
        edges: ActiveEdges = ctx.edges
        by_gene, order, bounds = _by_gene(edges)
        arrays = _arrays(ctx.cells.cell, edges.starts, edges.pathway, query, readout, key, value)
        gate_, shift_ = _arrays(*_or_empty(query, 1, gate, shift))
        has = gate is not None, shift is not None
        # Tokens of different parts share pathways, so each part has its own sum. They are added in the order
        # of the parts, which makes the result independent of the number of threads.
        parts = len(bounds) - 1
        d_query, d_readout = (np.zeros((parts, *query.shape), arrays[3].dtype) for _ in range(2))
        out = [np.zeros_like(array) for array in (*_arrays(key, value), gate_, shift_)]
        run(
            tokens.attention_backward,
            bounds, by_gene, order, *arrays, gate_, shift_, *has, *_arrays(log_sum, mean, d_activity),
            d_query, d_readout, *out,
        )  # fmt: skip
        d_key, d_value, d_gate, d_shift = map(torch.from_numpy, out)
        both = torch.from_numpy(d_query.sum(axis=0)), torch.from_numpy(d_readout.sum(axis=0))
        return *both, d_key, d_value, d_gate if has[0] else None, d_shift if has[1] else None, None, None


class MemberSum(torch.autograd.Function):
    """Sum of the rows of every pathway's members."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, table: EdgeTable) -> Tensor:
        """Sums of the rows, shape (P, d)."""
        ctx.table, ctx.n_rows = table, len(rows)
        starts, gene = table.member_starts.numpy(), table.member_gene.numpy()
        result = rows.new_zeros(table.n_pathways, rows.shape[1])
        run(sums.sum_rows, cut(starts), starts, gene, *_arrays(rows.new_ones(len(gene)), rows, result))
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_result: Tensor) -> Gradients:
        """The transposed sum: for every gene over its pathways."""
        table: EdgeTable = ctx.table
        pathway = np.repeat(np.arange(table.n_pathways), np.diff(table.member_starts.numpy()))
        starts, order = group(table.member_gene.numpy(), ctx.n_rows)
        d_rows = d_result.new_zeros(ctx.n_rows, d_result.shape[1])
        arrays = _arrays(d_result.new_ones(len(order)), d_result, d_rows)
        run(sums.sum_rows, cut(starts), starts, pathway[order], *arrays)
        return d_rows, None


class ScaledRows(torch.autograd.Function):
    """``factor_t · table[gene_t] + constant`` of every token."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, gene: Tensor, factor: Tensor, constant: Tensor) -> Tensor:
        """Rows, shape (T, d)."""
        ctx.save_for_backward(table, gene, factor)
        rows = table.new_empty(len(gene), table.shape[1])
        tokens = cut(np.arange(len(gene) + 1))
        run(sums.scaled_rows_forward, tokens, *_arrays(gene, factor, table, constant, rows))
        return rows

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_rows: Tensor) -> Gradients:
        """Gradients of the table, the factors and the summand."""
        table, gene, factor = ctx.saved_tensors
        starts, order = group(gene.numpy(), len(table))
        d_factor, d_table, d_constant = map(torch.zeros_like, (factor, table, table))
        arrays = _arrays(factor, table, d_rows, d_factor, d_table, d_constant)
        run(sums.scaled_rows_backward, cut(starts), starts, order, *arrays)
        return d_table, None, d_factor, d_constant.sum(0)


class TokenProducts(torch.autograd.Function):
    """Rows of values, as tokens, times a table."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, column: Tensor, values: Tensor, starts: Tensor) -> Tensor:
        """Products, shape (n, d)."""
        ctx.save_for_backward(column, values, starts)
        ctx.n_columns = len(table)
        return torch.nn.functional.embedding_bag(
            column, table, starts, mode="sum", per_sample_weights=values, include_last_offset=True
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_result: Tensor) -> Gradients:
        """The gradient of the table: the transposed product."""
        column, values, starts = ctx.saved_tensors
        by_column, order = group(column.numpy(), ctx.n_columns)
        row = np.repeat(np.arange(len(d_result)), np.diff(starts.numpy()))
        d_table = d_result.new_zeros(ctx.n_columns, d_result.shape[1])
        arrays = _arrays(values[torch.from_numpy(order)], d_result, d_table)
        run(sums.sum_rows, cut(by_column), by_column, row[order], *arrays)
        return d_table, None, None, None


def _arrays(*tensors: Tensor) -> list[np.ndarray]:
    """The tensors as contiguous arrays, without a copy if they are contiguous."""
    return [tensor.detach().contiguous().numpy() for tensor in tensors]


def _or_empty(like: Tensor, axes: int, *tensors: Tensor | None) -> list[Tensor]:
    """Replace None by an empty tensor, which the kernel does not read: its arguments have fixed types."""
    return [like.new_zeros((0,) * axes) if tensor is None else tensor for tensor in tensors]


def _by_gene(edges: ActiveEdges) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens grouped by gene (those without edges last), and bounds of parts with about equal work."""
    token_gene, n = edges.token_gene.numpy(), len(edges.genes)
    starts, order = group(np.where(token_gene < 0, n, token_gene), n + 1)
    pairs = np.diff(starts[:-1]) * np.diff(edges.starts.numpy())  # (G,)
    return starts, order, cut(np.concatenate([[0], np.cumsum(pairs)]))
