"""Optional transformer over the gene tokens of each cell, before the pathway layer.

Linear maps run on the tokens of all cells at once; only attention has to separate cells. Cells of the same
length go through scaled_dot_product_attention together, on a GPU also cells of nearly the same length.
Cells are never padded to the longest cell of a batch.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from tadvae.base.config import Config

GPU_SLACK = 0.125
"""Largest share of padding in a bucket on a GPU, where another call costs more than some padding."""


class EncoderConfig(Config):
    """The encoder of gene tokens; width and heads are those of the pathway layer."""

    kind: Literal["none", "full", "inducing"] = "none"
    """How the genes of a cell interact before the pathway layer.

    - ``none``: they do not; keys and values depend only on the gene and its expression; the fast default.
    - ``full``: self-attention between all tokens of a cell; time is quadratic in their number; use it for
      small panels or on a GPU.
    - ``inducing``: attention through a few learned points; time is linear; use it for large panels.
    """
    n_layers: int = Field(2, ge=1, le=1000)
    """Number of layers."""
    n_inducing: int = Field(32, ge=1)
    """Number of learned points per layer; only for ``inducing``."""
    expansion: int = Field(2, ge=1)
    """Width of the feed-forward networks as a multiple of the token width."""


@dataclass(frozen=True)
class Bucket:
    """Cells of (nearly) the same length that go through attention in one call.

    Attributes
    ----------
    n, length
        Number of cells, and of (padded) tokens of each.
    real : (n, length) bool
        Whether a token is real, not padding; None if all are.
    """

    n: int
    length: int
    real: Tensor | None


@dataclass(frozen=True)
class Ragged:
    """How the tokens of all cells are arranged into buckets, and back.

    Attributes
    ----------
    buckets
        The buckets, longest cells first.
    gather : (M,) int64
        Index of the token at each position of all buckets; padding repeats a cell's first token.
    back : (T,) int64
        Position of each token in the buckets.
    """

    buckets: list[Bucket]
    gather: Tensor
    back: Tensor

    @classmethod
    def of(cls, offsets: Tensor, slack: float) -> "Ragged":
        """Put cells whose lengths differ by at most ``slack`` of the longest into one bucket.

        Parameters
        ----------
        offsets : (B + 1,) int64
            Position of each cell's first token.
        slack
            Largest share of padding, from 0 to 1.
        """
        device, offsets = offsets.device, offsets.cpu()
        length = torch.diff(offsets)
        order = torch.argsort(length, stable=True, descending=True)
        order = order[: int((length > 0).sum())]
        buckets, gather, place = [], [], []
        first, at = 0, 0
        while first < len(order):
            longest = int(length[order[first]])
            inside = length[order[first:]] >= longest * (1 - slack)
            cells = order[first : first + int(inside.sum())]
            column = torch.arange(longest)
            real = column < length[cells][:, None]  # (n, longest)
            gather.append(
                torch.where(real, offsets[cells][:, None] + column, offsets[cells][:, None]).flatten()
            )
            place.append(torch.nonzero(real.flatten())[:, 0] + at)
            buckets.append(Bucket(len(cells), longest, None if bool(real.all()) else real.to(device)))
            first, at = first + len(cells), at + real.numel()
        none = torch.empty(0, dtype=torch.int64)
        where, token = torch.cat([none, *place]), torch.cat([none, *gather])
        back = torch.empty(int(length.sum()), dtype=torch.int64)
        back[token[where]] = where
        return cls(buckets, token.to(device), back.to(device))

    def split(self, tokens: Tensor) -> list[Tensor]:
        """Arrange tokens (T, h, w) into one array (n, h, length, w) per bucket."""
        parts = tokens[self.gather].split([bucket.n * bucket.length for bucket in self.buckets])
        return [
            part.view(bucket.n, bucket.length, *part.shape[1:]).transpose(1, 2)
            for part, bucket in zip(parts, self.buckets, strict=True)
        ]

    def join(self, parts: list[Tensor]) -> Tensor:
        """Inverse of :meth:`split`."""
        return torch.cat([part.transpose(1, 2).flatten(0, 1) for part in parts])[self.back]


class _Layer(nn.Module, ABC):
    """Pre-norm, residual: ``x + attend(norm(x))``, then ``x + network(norm(x))``."""

    def __init__(self, d: int, n_heads: int, config: EncoderConfig) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.norm = nn.LayerNorm(d)
        self.out = nn.Linear(d, d)
        self.network = nn.Sequential(
            nn.LayerNorm(d), nn.Linear(d, config.expansion * d), nn.GELU(), nn.Linear(config.expansion * d, d)
        )

    def heads(self, rows: Tensor) -> Tensor:
        """Split rows (n, d) into heads (n, h, w)."""
        return rows.view(len(rows), self.n_heads, -1)

    @abstractmethod
    def attend(self, x: Tensor, ragged: Ragged) -> Tensor:
        """Output of the attention for every token, (T, d), from normalised tokens (T, d)."""

    def forward(self, x: Tensor, ragged: Ragged) -> Tensor:
        """Apply the layer to tokens (T, d); the result has the same shape."""
        x = x + self.out(self.attend(self.norm(x), ragged))
        result: Tensor = x + self.network(x)
        return result


class FullLayer(_Layer):
    """Self-attention among the tokens of a cell (Vaswani et al. 2017, equation 1; pre-norm)."""

    def __init__(self, d: int, n_heads: int, config: EncoderConfig) -> None:
        super().__init__(d, n_heads, config)
        self.qkv = nn.Linear(d, 3 * d)

    def attend(self, x: Tensor, ragged: Ragged) -> Tensor:
        """Softmax attention between the tokens of each cell, bucket by bucket."""
        q, k, v = (ragged.split(self.heads(part)) for part in self.qkv(x).chunk(3, dim=1))
        seen = []
        for i, bucket in enumerate(ragged.buckets):
            mask = None if bucket.real is None else bucket.real[:, None, None]  # (n, 1, 1, length)
            seen.append(scaled_dot_product_attention(q[i], k[i], v[i], attn_mask=mask))
        return ragged.join(seen).flatten(1)


class InducingLayer(_Layer):
    """Attention through m learned points (induced set attention, Lee et al. 2019, equations 9 and 10).

    ``H = I + attend(I → tokens)``, then every token attends to H.
    """

    def __init__(self, d: int, n_heads: int, config: EncoderConfig) -> None:
        super().__init__(d, n_heads, config)
        self.points = nn.Parameter(torch.randn(config.n_inducing, d) / d**0.5)
        self.points_norm = nn.LayerNorm(d)
        self.points_query = nn.Linear(d, d)
        self.tokens_kv = nn.Linear(d, 2 * d)
        self.points_out = nn.Linear(d, d)
        self.summary_norm = nn.LayerNorm(d)
        self.tokens_query = nn.Linear(d, d)
        self.summary_kv = nn.Linear(d, 2 * d)

    def attend(self, x: Tensor, ragged: Ragged) -> Tensor:
        """Attention from tokens to the learned points and back to the tokens."""
        k, v = (ragged.split(self.heads(part)) for part in self.tokens_kv(x).chunk(2, dim=1))
        query = self.heads(self.points_query(self.points_norm(self.points))).transpose(0, 1)  # (h, m, w)
        seen = []
        for i, bucket in enumerate(ragged.buckets):
            mask = None if bucket.real is None else bucket.real[:, None, None]  # (n, 1, 1, length)
            q = query.expand(bucket.n, -1, -1, -1)
            seen.append(scaled_dot_product_attention(q, k[i], v[i], attn_mask=mask))  # (n, h, m, w)
        summary = self.points + self.points_out(torch.cat(seen).transpose(1, 2).flatten(2))  # (B', m, d)
        kv = self.summary_kv(self.summary_norm(summary)).unflatten(-1, (2, self.n_heads, -1))
        keys, values = kv.permute(2, 0, 3, 1, 4)  # (B', h, m, w) each
        sizes = [bucket.n for bucket in ragged.buckets]
        parts = zip(
            ragged.split(self.heads(self.tokens_query(x))),
            keys.split(sizes),
            values.split(sizes),
            strict=True,
        )
        return ragged.join([scaled_dot_product_attention(q, key, value) for q, key, value in parts]).flatten(
            1
        )


_LAYERS: dict[str, type[_Layer]] = {"full": FullLayer, "inducing": InducingLayer}


class TokenEncoder(nn.Module):
    """A stack of layers of one kind.

    There is no norm after the last layer: the length of a token encodes its expression.
    """

    def __init__(self, config: EncoderConfig, d: int, n_heads: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_LAYERS[config.kind](d, n_heads, config) for _ in range(config.n_layers))

    def forward(self, tokens: Tensor, offsets: Tensor) -> Tensor:
        """Encoded tokens (T, d); cells start at ``offsets`` (B + 1,)."""
        if not len(tokens):  # DDP waits for a gradient of every parameter
            return tokens + 0.0 * torch.stack([p.sum() for p in self.parameters()]).sum()
        ragged = Ragged.of(offsets, slack=0.0 if tokens.device.type == "cpu" else GPU_SLACK)
        for layer in self.layers:
            tokens = layer(tokens, ragged)
        return tokens
