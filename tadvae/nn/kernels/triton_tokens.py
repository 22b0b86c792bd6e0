"""Attention with keys and values per token (with an encoder) on a GPU, in Triton.

For a cell b, a pathway p, a head and a token t whose gene has an edge e to p::

    logit = gate_e·(q_p·k_t) + shift_e        value = o_p·v_t

and the activity of p in b is ``Σ_heads softmax(logit)·value`` over the cell's tokens (T-AD-VAE, the equation
of pathway attention). Forward takes a cell and a block of pathways, goes over the cell's tokens once, and
rescales what it has summed when a larger logit comes (Milakov and Gimelshein 2018, online softmax). It keeps
the logarithm of the sum of weights and the mean value of every (cell, pathway, head).

Backward computes the weights again from these. Keys, values, gates and shifts get their gradients gene by
gene, and queries and read-outs pathway by pathway: every number is written by one program, so nothing is
added atomically, and results are reproducible bit for bit.

``TRITON_INTERPRET=1``, set before Triton is first imported, runs it on the CPU, in float64 too. On a GPU,
where it has not run yet, the inputs are in float32.
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

PATHWAYS, TOKENS, EDGES = 16, 32, 16
"""Pathways, tokens and edges that a program looks at together."""


@triton.jit
def _rows(base, row, i, h, H, W, real):
    """Rows ``row`` of a (n, h, w) array for one head, zero where they are not real."""
    at = (row[:, None] * H + h) * W + i[None, :]
    return tl.load(base + at, mask=real[:, None] & (i < W)[None, :], other=0.0)


@triton.jit
def _tokens(order, cell, key, value, at, last, i, h, H, W, BT: tl.constexpr):
    """Tokens ``at`` to ``last``, at most BT: their number, cell, whether they are real, keys and values."""
    n = at + tl.arange(0, BT)
    real = n < last
    t = tl.load(order + n, mask=real, other=0)
    b = tl.load(cell + t, mask=real, other=0)
    return t, b, real, _rows(key, t, i, h, H, W, real), _rows(value, t, i, h, H, W, real)


@triton.jit
def _edges(pathway, query, readout, first, last, i, h, H, W, BE: tl.constexpr):
    """Edges ``first`` to ``last``, at most BE (-1: none): number, pathway, reality, queries, read-outs."""
    edge = first + tl.arange(0, BE)
    real = edge < last
    p = tl.load(pathway + edge, mask=real, other=0)
    edge = tl.where(real, edge, -1)
    return edge, p, real, _rows(query, p, i, h, H, W, real), _rows(readout, p, i, h, H, W, real)


@triton.jit
def _forward(
    query, readout, key, value, gate, shift, gene, offsets, lookup, log_sum, mean,
    P, H, W,
    HAS_GATE: tl.constexpr, HAS_SHIFT: tl.constexpr,
    WP: tl.constexpr, BP: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    b, h = tl.program_id(0), tl.program_id(2)
    p = tl.program_id(1) * BP + tl.arange(0, BP)  # (BP,)
    i = tl.arange(0, WP)
    is_pathway = p < P
    q = _rows(query, p, i, h, H, W, is_pathway)  # (BP, W)
    o = _rows(readout, p, i, h, H, W, is_pathway)
    top = tl.full([BP], float("-inf"), q.dtype)
    total = tl.zeros([BP], q.dtype)
    sums = tl.zeros([BP], q.dtype)
    start, stop = tl.load(offsets + b), tl.load(offsets + b + 1)
    for first in range(start, stop, BT):
        t = first + tl.arange(0, BT)  # (BT,)
        is_token = t < stop
        g = tl.load(gene + t, mask=is_token, other=0)
        both = is_pathway[:, None] & is_token[None, :]
        edge = tl.load(lookup + g[None, :] * P + p[:, None], mask=both, other=-1)  # (BP, BT)
        real = edge >= 0
        logit = tl.dot(q, tl.trans(_rows(key, t, i, h, H, W, is_token)), input_precision="ieee")
        if HAS_GATE:
            logit = logit * tl.load(gate + edge, mask=real, other=0.0)
        if HAS_SHIFT:
            logit = logit + tl.load(shift + edge, mask=real, other=0.0)
        logit = tl.where(real, logit, float("-inf"))
        own = tl.dot(o, tl.trans(_rows(value, t, i, h, H, W, is_token)), input_precision="ieee")
        higher = tl.maximum(top, tl.max(logit, 1))
        # a pathway without a token so far: −inf − (−inf) would not be a number
        at = tl.where(higher == float("-inf"), 0.0, higher)
        weight = tl.where(real, tl.exp(logit - at[:, None]), 0.0)
        kept = tl.exp(top - at)
        total = total * kept + tl.sum(weight, 1)
        sums = sums * kept + tl.sum(weight * own, 1)
        top = higher
    has = total > 0
    place = (b * P + p) * H + h
    divisor = tl.where(has, total, 1.0)
    tl.store(mean + place, tl.where(has, sums / divisor, 0.0), mask=is_pathway)
    # infinite where there is no token: its weights are exp(−inf) = 0
    tl.store(log_sum + place, tl.where(has, top + tl.log(divisor), float("inf")), mask=is_pathway)


@triton.jit
def _pairs(
    q, o, k, v, edge, p, b, real, gate, shift, log_sum, mean, d_activity, h, P, H,
    HAS_GATE: tl.constexpr, HAS_SHIFT: tl.constexpr,
):  # fmt: skip
    """Of tokens × edges: q·k, weight · output gradient, and the gradient of the logit; and the gates."""
    product = tl.dot(k, tl.trans(q), input_precision="ieee")  # (BT, BE)
    gates = tl.full([1], 1.0, q.dtype)
    logit = product
    is_edge = edge >= 0
    if HAS_GATE:
        gates = tl.load(gate + edge, mask=is_edge, other=0.0)
        logit = logit * gates[None, :]
    if HAS_SHIFT:
        logit = logit + tl.load(shift + edge, mask=is_edge, other=0.0)[None, :]
    place = b[:, None] * P + p[None, :]
    weight = tl.where(real, tl.exp(logit - tl.load(log_sum + place * H + h, mask=real, other=0.0)), 0.0)
    given = weight * tl.load(d_activity + place, mask=real, other=0.0)
    own = tl.dot(v, tl.trans(o), input_precision="ieee") - tl.load(mean + place * H + h, mask=real, other=0.0)
    return product, given, given * own, gates


@triton.jit
def _backward_by_gene(
    query, readout, key, value, gate, shift, cell, order, token_starts, gene_starts, pathway,
    log_sum, mean, d_activity, d_key, d_value, d_gate, d_shift,
    P, H, W,
    HAS_GATE: tl.constexpr, HAS_SHIFT: tl.constexpr,
    WP: tl.constexpr, BT: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    g, h = tl.program_id(0), tl.program_id(1)
    i = tl.arange(0, WP)
    first_token, last_token = tl.load(token_starts + g), tl.load(token_starts + g + 1)
    first_edge, last_edge = tl.load(gene_starts + g), tl.load(gene_starts + g + 1)
    for at in range(first_token, last_token, BT):
        t, b, is_token, k, v = _tokens(order, cell, key, value, at, last_token, i, h, H, W, BT)
        d_k, d_v = tl.zeros([BT, WP], k.dtype), tl.zeros([BT, WP], k.dtype)
        for e0 in range(first_edge, last_edge, BE):
            edge, p, is_edge, q, o = _edges(pathway, query, readout, e0, last_edge, i, h, H, W, BE)
            real = is_token[:, None] & is_edge[None, :]
            _, given, d_logit, gates = _pairs(
                q, o, k, v, edge, p, b, real, gate, shift, log_sum, mean, d_activity, h, P, H,
                HAS_GATE, HAS_SHIFT,
            )  # fmt: skip
            d_k += tl.dot(d_logit * gates[None, :], q, input_precision="ieee")
            d_v += tl.dot(given, o, input_precision="ieee")
        to = (t[:, None] * H + h) * W + i[None, :]
        inside = is_token[:, None] & (i < W)[None, :]
        tl.store(d_key + to, d_k, mask=inside)
        tl.store(d_value + to, d_v, mask=inside)
    if HAS_GATE or HAS_SHIFT:  # edge by edge, so that each is summed in registers and written once
        for e0 in range(first_edge, last_edge, BE):
            edge, p, is_edge, q, o = _edges(pathway, query, readout, e0, last_edge, i, h, H, W, BE)
            of_gate, of_shift = tl.zeros([BE], q.dtype), tl.zeros([BE], q.dtype)
            for at in range(first_token, last_token, BT):
                t, b, is_token, k, v = _tokens(order, cell, key, value, at, last_token, i, h, H, W, BT)
                real = is_token[:, None] & is_edge[None, :]
                product, _, d_logit, _ = _pairs(
                    q, o, k, v, edge, p, b, real, gate, shift, log_sum, mean, d_activity, h, P, H,
                    HAS_GATE, HAS_SHIFT,
                )  # fmt: skip
                of_gate += tl.sum(d_logit * product, 0)
                of_shift += tl.sum(d_logit, 0)
            if HAS_GATE:
                tl.store(d_gate + edge * H + h, of_gate, mask=is_edge)
            if HAS_SHIFT:
                tl.store(d_shift + edge * H + h, of_shift, mask=is_edge)


@triton.jit
def _backward_by_pathway(
    query, readout, key, value, gate, shift, cell, order, token_starts, gene, path_starts, path_order,
    log_sum, mean, d_activity, d_query, d_readout,
    P, H, W,
    HAS_GATE: tl.constexpr, HAS_SHIFT: tl.constexpr, WP: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    p, h = tl.program_id(0), tl.program_id(1)
    i = tl.arange(0, WP)
    in_row = i < W
    row = (p * H + h) * W + i
    q = tl.load(query + row, mask=in_row, other=0.0)  # (W,)
    o = tl.load(readout + row, mask=in_row, other=0.0)
    d_q, d_o = tl.zeros([WP], q.dtype), tl.zeros([WP], q.dtype)
    for m in range(tl.load(path_starts + p), tl.load(path_starts + p + 1)):
        edge = tl.load(path_order + m)
        g = tl.load(gene + edge)
        last_token = tl.load(token_starts + g + 1)
        for at in range(tl.load(token_starts + g), last_token, BT):
            _, b, is_token, k, v = _tokens(order, cell, key, value, at, last_token, i, h, H, W, BT)
            logit = tl.sum(k * q[None, :], 1)  # (BT,)
            if HAS_GATE:
                logit = logit * tl.load(gate + edge)
            if HAS_SHIFT:
                logit = logit + tl.load(shift + edge)
            place = b * P + p
            sums = tl.load(log_sum + place * H + h, mask=is_token, other=0.0)
            weight = tl.where(is_token, tl.exp(logit - sums), 0.0)
            given = weight * tl.load(d_activity + place, mask=is_token, other=0.0)
            own = tl.sum(v * o[None, :], 1) - tl.load(mean + place * H + h, mask=is_token, other=0.0)
            d_logit = given * own
            if HAS_GATE:
                d_logit = d_logit * tl.load(gate + edge)
            d_q += tl.sum(d_logit[:, None] * k, 0)
            d_o += tl.sum(given[:, None] * v, 0)
    tl.store(d_query + row, d_q, mask=in_row)
    tl.store(d_readout + row, d_o, mask=in_row)


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
        grid = cells.n_cells, triton.cdiv(P, PATHWAYS), H
        if cells.n_cells and P:
            _forward[grid](
                query, readout, key, value, *_or_any(query, given[4:]), cells.gene_ids, cells.offsets,
                edges.lookup, log_sum, mean, P, H, W, gate is not None, shift is not None,
                WP=_padded(W), BP=PATHWAYS, BT=TOKENS,
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
        sizes = P, H, W, gate is not None, shift is not None
        if len(order) and P:
            _backward_by_gene[n_genes, H](
                *tensors, edges.gene_starts, edges.pathway, log_sum, mean, d_activity,
                d_key, d_value, d_gate, d_shift, *sizes, WP=_padded(W), BT=TOKENS, BE=EDGES,
            )  # fmt: skip
            _backward_by_pathway[P, H](
                *tensors, edges.gene, edges.path_starts, edges.path_order, log_sum, mean, d_activity,
                d_query, d_readout, *sizes, WP=_padded(W), BT=TOKENS,
            )  # fmt: skip
        of_gate = None if gate is None else d_gate.sum(-1)
        of_shift = None if shift is None else d_shift.sum(-1)
        return d_query, d_readout, d_key, d_value, of_gate, of_shift, None, None


def _padded(width: int) -> int:
    """The width of a block of rows: a power of two, and 16 at least, which products of blocks need."""
    return max(16, int(triton.next_power_of_2(width)))


def _or_any(like: Tensor, tensors: list[Tensor | None]) -> list[Tensor]:
    """Replace None by a tensor that is not read."""
    return [like if tensor is None else tensor for tensor in tensors]
