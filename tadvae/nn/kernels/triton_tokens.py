"""Attention with keys and values per token (with an encoder) on a GPU, in Triton.

For a cell b, a pathway p, a head and a token t whose gene has an edge e to p::

    logit = gate_e·(q_p·k_t) + shift_e        value = o_p·v_t

and the activity of p in b is ``Σ_heads softmax(logit)·value`` over the cell's tokens (T-AD-VAE, the equation
of pathway attention). Few tokens have an edge to a pathway, so forward takes a cell, a pathway and a head,
looks the pathway's genes up among the cell's tokens, and rescales what it has summed when a larger logit
comes (Milakov and Gimelshein 2018, online softmax). It keeps the logarithm of the sum of weights and the mean
value of every (cell, pathway, head).

Backward computes the weights again from these. Keys and values get their gradients gene by gene, all else
pathway by pathway: every number is written by one program, so nothing is added atomically, and results are
reproducible bit for bit.

``TRITON_INTERPRET=1``, set before Triton is first imported, runs it on the CPU, in float64 too.
"""

# Triton compiles functions whose parameters have no types.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-calls=False
# mypy: disallow-untyped-decorators=False

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from tadvae.nn.edges import EdgeOrder
from tadvae.nn.packed import PackedCells

MEMBERS, TOKENS = 32, 32
"""Members of a pathway, and tokens of a gene, that a program looks at together."""
WARPS = 1
"""Of a program: it has few numbers to work on."""


@triton.jit
def _row(base, row, i, h, H, W):
    """One row of an (n, h, w) array for one head, zero beyond its width."""
    return tl.load(base + (row * H + h) * W + i, mask=i < W, other=0.0)


@triton.jit
def _rows(base, row, i, h, H, W, real):
    """Rows ``row`` of an (n, h, w) array for one head, zero where they are not real."""
    at = (row[:, None] * H + h) * W + i[None, :]
    return tl.load(base + at, mask=real[:, None] & (i < W)[None, :], other=0.0)


@triton.jit
def _forward(
    query, readout, key, value, gate, shift, position, gene, path_starts, path_order, log_sum, mean,
    G, P, H, W,
    HAS_GATE: tl.constexpr, HAS_SHIFT: tl.constexpr, WP: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    p, b, h = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    i = tl.arange(0, WP)
    q, o = _row(query, p, i, h, H, W), _row(readout, p, i, h, H, W)  # (W,)
    top = tl.max(tl.full([BM], float("-inf"), q.dtype), 0)
    total = tl.sum(tl.zeros([BM], q.dtype), 0)
    sums = total
    stop = tl.load(path_starts + p + 1)
    for first in range(tl.load(path_starts + p), stop, BM):
        m = first + tl.arange(0, BM)  # (BM,)
        is_member = m < stop
        edge = tl.load(path_order + m, mask=is_member, other=0)
        g = tl.load(gene + edge, mask=is_member, other=0)
        t = tl.load(position + b * G + g, mask=is_member, other=-1).to(tl.int64)
        real = t >= 0
        logit = tl.sum(_rows(key, t, i, h, H, W, real) * q[None, :], 1)
        if HAS_GATE:
            logit = logit * tl.load(gate + edge, mask=real, other=0.0)
        if HAS_SHIFT:
            logit = logit + tl.load(shift + edge, mask=real, other=0.0)
        logit = tl.where(real, logit, float("-inf"))
        own = tl.sum(_rows(value, t, i, h, H, W, real) * o[None, :], 1)
        higher = tl.maximum(top, tl.max(logit, 0))
        # no token so far: −inf − (−inf) would not be a number
        at = tl.where(higher == float("-inf"), 0.0, higher)
        weight = tl.where(real, tl.exp(logit - at), 0.0)
        kept = tl.exp(top - at)
        total = total * kept + tl.sum(weight, 0)
        sums = sums * kept + tl.sum(weight * own, 0)
        top = higher
    has = total > 0
    divisor = tl.where(has, total, 1.0)
    place = (b * P + p) * H + h
    tl.store(mean + place, tl.where(has, sums / divisor, 0.0))
    # infinite where there is no token: its weights are exp(−inf) = 0
    tl.store(log_sum + place, tl.where(has, top + tl.log(divisor), float("inf")))


@triton.jit
def _edge(
    q, o, edge, p, h, i, at, last, key, value, gate, shift, cell, order, log_sum, mean, d_activity, P, H, W,
    HAS_GATE: tl.constexpr, HAS_SHIFT: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    """Of an edge and the tokens ``at`` to ``last`` of its gene, at most BT.

    Returns keys and values of the tokens, q·k, weight · output gradient, the gradient of the logit, and that
    of q·k.
    """
    n = at + tl.arange(0, BT)
    real = n < last
    t = tl.load(order + n, mask=real, other=0)
    place = tl.load(cell + t, mask=real, other=0) * P + p
    k, v = _rows(key, t, i, h, H, W, real), _rows(value, t, i, h, H, W, real)
    product = tl.sum(k * q[None, :], 1)  # (BT,)
    logit = product
    if HAS_GATE:
        logit = logit * tl.load(gate + edge)
    if HAS_SHIFT:
        logit = logit + tl.load(shift + edge)
    sums = tl.load(log_sum + place * H + h, mask=real, other=0.0)
    weight = tl.where(real, tl.exp(logit - sums), 0.0)
    given = weight * tl.load(d_activity + place, mask=real, other=0.0)
    own = tl.sum(v * o[None, :], 1) - tl.load(mean + place * H + h, mask=real, other=0.0)
    d_logit = given * own
    d_product = d_logit
    if HAS_GATE:
        d_product = d_logit * tl.load(gate + edge)
    return k, v, product, given, d_logit, d_product


@triton.jit
def _backward_by_gene(
    query, readout, key, value, gate, shift, cell, order, token_starts, log_sum, mean, d_activity,
    gene_starts, pathway, d_key, d_value, P, H, W,
    HAS_GATE: tl.constexpr, HAS_SHIFT: tl.constexpr, WP: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    g, h = tl.program_id(0), tl.program_id(1)
    i = tl.arange(0, WP)
    first_edge, last_edge = tl.load(gene_starts + g), tl.load(gene_starts + g + 1)
    last = tl.load(token_starts + g + 1)
    if first_edge < last_edge:  # the gradients of other tokens are zero already
        for at in range(tl.load(token_starts + g), last, BT):
            d_k = tl.zeros([BT, WP], key.dtype.element_ty)
            d_v = tl.zeros([BT, WP], key.dtype.element_ty)
            n = at + tl.arange(0, BT)
            t = tl.load(order + n, mask=n < last, other=0)
            for edge in range(first_edge, last_edge):
                p = tl.load(pathway + edge)
                q, o = _row(query, p, i, h, H, W), _row(readout, p, i, h, H, W)
                _, _, _, given, _, d_product = _edge(
                    q, o, edge, p, h, i, at, last, key, value, gate, shift, cell, order, log_sum, mean,
                    d_activity, P, H, W, HAS_GATE, HAS_SHIFT, BT,
                )  # fmt: skip
                d_k += d_product[:, None] * q[None, :]
                d_v += given[:, None] * o[None, :]
            to = (t[:, None] * H + h) * W + i[None, :]
            inside = (n < last)[:, None] & (i < W)[None, :]
            tl.store(d_key + to, d_k, mask=inside)
            tl.store(d_value + to, d_v, mask=inside)


@triton.jit
def _backward_by_pathway(
    query, readout, key, value, gate, shift, cell, order, token_starts, log_sum, mean, d_activity,
    gene, path_starts, path_order, d_query, d_readout, d_gate, d_shift, P, H, W,
    HAS_GATE: tl.constexpr, HAS_SHIFT: tl.constexpr, WP: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    p, h = tl.program_id(0), tl.program_id(1)
    i = tl.arange(0, WP)
    q, o = _row(query, p, i, h, H, W), _row(readout, p, i, h, H, W)  # (W,)
    d_q, d_o = tl.zeros([WP], q.dtype), tl.zeros([WP], q.dtype)
    for m in range(tl.load(path_starts + p), tl.load(path_starts + p + 1)):
        edge = tl.load(path_order + m)
        g = tl.load(gene + edge)
        last = tl.load(token_starts + g + 1)
        of_gate, of_shift = tl.zeros([BT], q.dtype), tl.zeros([BT], q.dtype)
        for at in range(tl.load(token_starts + g), last, BT):
            k, v, product, given, d_logit, d_product = _edge(
                q, o, edge, p, h, i, at, last, key, value, gate, shift, cell, order, log_sum, mean,
                d_activity, P, H, W, HAS_GATE, HAS_SHIFT, BT,
            )  # fmt: skip
            d_q += tl.sum(d_product[:, None] * k, 0)
            d_o += tl.sum(given[:, None] * v, 0)
            of_gate += d_logit * product
            of_shift += d_logit
        if HAS_GATE:
            tl.store(d_gate + edge * H + h, tl.sum(of_gate, 0))
        if HAS_SHIFT:
            tl.store(d_shift + edge * H + h, tl.sum(of_shift, 0))
    row = (p * H + h) * W + i
    tl.store(d_query + row, d_q, mask=i < W)
    tl.store(d_readout + row, d_o, mask=i < W)


class TokenAttention(torch.autograd.Function):
    """Attention of pathways over tokens; shapes as in :func:`tadvae.nn.attention.token_attention`."""

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
        edges: EdgeOrder,
    ) -> Tensor:
        """Activities, shape (B, P)."""
        given = [
            None if part is None else part.contiguous() for part in (query, readout, key, value, gate, shift)
        ]
        query, readout, key, value = (part for part in given[:4] if part is not None)
        P, H, W = query.shape
        log_sum, mean = (query.new_empty(cells.n_cells, P, H) for _ in range(2))
        n_genes = len(edges.gene_starts) - 1
        # which token of a cell is of a gene, -1: none
        position = torch.full((cells.n_cells, n_genes), -1, dtype=torch.int32, device=query.device)
        number = torch.arange(len(cells.gene_ids), dtype=torch.int32, device=query.device)
        position[cells.cell, cells.gene_ids] = number
        if cells.n_cells and P:
            _forward[P, cells.n_cells, H](
                query, readout, key, value, *_or_any(query, given[4:]), position, edges.gene,
                edges.path_starts, edges.path_order, log_sum, mean, n_genes, P, H, W,
                gate is not None, shift is not None, WP=_padded(W), BM=MEMBERS, num_warps=WARPS,
            )  # fmt: skip
        ctx.save_for_backward(*given, log_sum, mean)
        ctx.cells, ctx.edges = cells, edges
        return mean.sum(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of query, readout, key, value, gate and shift."""
        query, readout, key, value, gate, shift, log_sum, mean = ctx.saved_tensors
        cells, edges, d_activity = ctx.cells, ctx.edges, grads[0].contiguous()
        P, H, W = query.shape
        n_genes = len(edges.gene_starts) - 1
        in_order, order = torch.sort(cells.gene_ids, stable=True)
        number = torch.arange(n_genes + 1, device=order.device)
        token_starts = torch.searchsorted(in_order, number)
        d_query, d_readout = torch.zeros_like(query), torch.zeros_like(readout)
        d_key, d_value = torch.zeros_like(key), torch.zeros_like(value)
        d_gate, d_shift = (query.new_zeros(len(edges.gene), H) for _ in range(2))
        tensors = query, readout, key, value, *_or_any(query, [gate, shift]), cells.cell, order, token_starts
        tensors += log_sum, mean, d_activity
        sizes = P, H, W, gate is not None, shift is not None
        if len(order) and P:
            _backward_by_gene[n_genes, H](
                *tensors, edges.gene_starts, edges.pathway, d_key, d_value, *sizes,
                WP=_padded(W), BT=TOKENS, num_warps=WARPS,
            )  # fmt: skip
            _backward_by_pathway[P, H](
                *tensors, edges.gene, edges.path_starts, edges.path_order,
                d_query, d_readout, d_gate, d_shift, *sizes, WP=_padded(W), BT=TOKENS, num_warps=WARPS,
            )  # fmt: skip
        of_gate = None if gate is None else d_gate.sum(-1)
        of_shift = None if shift is None else d_shift.sum(-1)
        return d_query, d_readout, d_key, d_value, of_gate, of_shift, None, None


def _padded(width: int) -> int:
    """The width of a block of rows: a power of two."""
    return int(triton.next_power_of_2(width))


def _or_any(like: Tensor, tensors: list[Tensor | None]) -> list[Tensor]:
    """Replace None by a tensor that is not read."""
    return [like if tensor is None else tensor for tensor in tensors]
