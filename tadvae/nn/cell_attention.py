"""Attention within cells of different lengths, for many cells that lie one after the other.

Cells are never padded to the longest of a batch. On the CPU every cell is a slice of the arrays, without a
copy. On a GPU in half precision one call of PyTorch's kernel for variable lengths takes all cells. In single
precision, which that kernel does not have, cells of nearly the same length are padded to the longest of them
and share a call, because there a call costs more than some padding.
"""

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

SLACK = 0.125
"""Largest share of padding of a cell on a GPU."""


class Lengths(list[int]):
    """Number of rows of each cell, in host memory."""

    @classmethod
    def of(cls, offsets: Tensor) -> "Lengths":
        """Differences of the offsets (B + 1,)."""
        return cls(torch.diff(offsets).tolist())

    @classmethod
    def same(cls, length: int, n_cells: int) -> "Lengths":
        """Cells of one length."""
        return cls([length] * n_cells)


@dataclass(frozen=True)
class Read:
    """Which tokens a layer has to compute.

    Attributes
    ----------
    all, kept
        Number of tokens of each cell, and of those that are computed.
    position : (T',) int64 or None
        Positions of the tokens that are computed; None: all.
    """

    all: Lengths
    kept: Lengths
    position: Tensor | None

    @classmethod
    def every(cls, offsets: Tensor) -> "Read":
        """All tokens of cells that start at ``offsets`` (B + 1,)."""
        lengths = Lengths.of(offsets)
        return cls(lengths, lengths, None)

    @classmethod
    def some(cls, offsets: Tensor, position: Tensor) -> "Read":
        """Only the tokens at sorted positions."""
        return cls(Lengths.of(offsets), Lengths.of(torch.searchsorted(position, offsets)), position)

    def of(self, rows: Tensor) -> Tensor:
        """The rows (T, …) of the tokens that are computed."""
        return rows if self.position is None else rows.index_select(0, self.position)


def attention_by_cell(
    query: Tensor, key: Tensor, value: Tensor, n_queries: Lengths, n_keys: Lengths, scale: float | None = None
) -> Tensor:
    """``softmax(scale · QKᵀ) V`` within every cell and head, (Tq, h, w).

    Parameters
    ----------
    query : (Tq, h, w)
        Queries of all cells, one cell after the other.
    key, value : (Tk, h, w)
        Keys and values of all cells.
    n_queries, n_keys
        Number of queries and of keys of each cell; the output of queries without keys is zero.
    scale
        None: 1/√w.
    """
    if query.device.type == "cpu":
        return by_slices(query, key, value, n_queries, n_keys, scale)
    if query.device.type == "cuda" and all(n_queries) and all(n_keys) and has_varlen():
        dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else query.dtype
        if dtype in (torch.bfloat16, torch.float16):
            return by_lengths(query.to(dtype), key.to(dtype), value.to(dtype), n_queries, n_keys, scale)
    return by_buckets(query, key, value, n_queries, n_keys, scale)


@cache
def has_varlen() -> bool:
    """Whether this PyTorch has attention over variable lengths (since 2.10)."""
    return find_spec("torch.nn.attention.varlen") is not None


def by_slices(
    query: Tensor, key: Tensor, value: Tensor, n_queries: Lengths, n_keys: Lengths, scale: float | None = None
) -> Tensor:
    """:func:`attention_by_cell`, one call per cell."""
    cells = zip(query.split(n_queries), key.split(n_keys), value.split(n_keys), strict=True)
    rows = []
    for q, k, v in cells:
        if not len(q) or not len(k):
            rows.append(0.0 * q)
            continue
        q, k, v = (part.transpose(0, 1)[None] for part in (q, k, v))  # (1, h, n, w)
        rows.append(scaled_dot_product_attention(q, k, v, scale=scale)[0].transpose(0, 1))
    return torch.cat(rows) if rows else 0.0 * query


def by_lengths(
    query: Tensor, key: Tensor, value: Tensor, n_queries: Lengths, n_keys: Lengths, scale: float | None = None
) -> Tensor:
    """:func:`attention_by_cell` of cells that are not empty, in one call; half precision on a GPU alone."""
    from torch.nn.attention.varlen import varlen_attn

    if scale is not None:  # PyTorch 2.10 has no such argument
        query = query * (scale * query.shape[-1] ** 0.5)

    def starts(lengths: Lengths) -> Tensor:
        """Position of each cell's first row, and the end, (B + 1,) int32."""
        return torch.tensor([0, *lengths]).cumsum(0).int().to(query.device, non_blocking=True)

    rows = query.contiguous(), key.contiguous(), value.contiguous()
    result = varlen_attn(*rows, starts(n_queries), starts(n_keys), max(n_queries), max(n_keys))
    assert isinstance(result, Tensor)  # with other options it also returns the normalisers
    return result


def by_buckets(
    query: Tensor, key: Tensor, value: Tensor, n_queries: Lengths, n_keys: Lengths, scale: float | None = None
) -> Tensor:
    """:func:`attention_by_cell`, one call for cells of nearly the same length."""
    device = query.device
    out = torch.zeros_like(query)
    lengths_q, lengths_k = torch.tensor(n_queries), torch.tensor(n_keys)
    first_q, first_k = lengths_q.cumsum(0) - lengths_q, lengths_k.cumsum(0) - lengths_k
    order = torch.argsort(lengths_k, stable=True, descending=True)
    order = order[(lengths_k[order] > 0) & (lengths_q[order] > 0)]
    places, parts = [], []
    while len(order):
        alike = lengths_k[order] >= lengths_k[order[0]] * (1 - SLACK)
        cells, order = order[alike], order[~alike]
        at_q, real_q = _padded(first_q[cells], lengths_q[cells])
        at_k, real_k = _padded(first_k[cells], lengths_k[cells])
        mask = None if bool(real_k.all()) else real_k[:, None, None].to(device)
        q, k, v = (
            rows[at.to(device)].transpose(1, 2) for rows, at in ((query, at_q), (key, at_k), (value, at_k))
        )
        seen = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale).transpose(1, 2)
        parts.append(seen.flatten(0, 1)[real_q.flatten().nonzero()[:, 0].to(device)])
        places.append(at_q[real_q])
    if not parts:
        return out + 0.0 * query
    return out.index_copy(0, torch.cat(places).to(device), torch.cat(parts).to(out.dtype))


def _padded(first: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
    """Positions (n, longest) of cells that start at ``first``, and which are real; padding repeats."""
    column = torch.arange(int(length.max()))
    real = column < length[:, None]
    return first[:, None] + column * real, real
