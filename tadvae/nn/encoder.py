"""Optional transformer over the gene tokens of each cell, before the pathway layer.

Linear maps run on the tokens of all cells at once; only attention has to separate cells
(:mod:`tadvae.nn.cell_attention`). The last layer is computed only for the tokens that a pathway reads, and
the first layer's queries, keys and values once per gene, where tokens are a multiple of the gene's embedding
(:mod:`tadvae.nn.token_rows`).
"""

from abc import ABC, abstractmethod
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from tadvae.base.config import Config
from tadvae.nn.cell_attention import Lengths, Read, attention_by_cell
from tadvae.nn.token_rows import DenseTokens, Tokens

ROWS = 1024
"""Tokens that go through the feed-forward network of a layer at once on the CPU."""


class EncoderConfig(Config):
    """The encoder of gene tokens; width and heads are those of the pathway layer."""

    kind: Literal["none", "full", "inducing"] = "none"
    """How the genes of a cell interact before the pathway layer.

    - ``none``: they do not; keys and values depend only on the gene and its expression; the fast default.
    - ``full``: self-attention between all tokens of a cell; time is quadratic in their number; use it for
      small panels or on a GPU.
    - ``inducing``: attention through a few learned points; time is linear; use it for large panels.
    """
    n_layers: int = Field(1, ge=1, le=1000)
    """Number of layers; time is proportional to it (`docs/experiments.md` compares one with two)."""
    n_inducing: int = Field(32, ge=1)
    """Number of learned points per layer; only for ``inducing``."""
    expansion: int = Field(2, ge=1)
    """Width of the feed-forward networks as a multiple of the token width."""


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
        result: Tensor = rows.unflatten(1, (self.n_heads, rows.shape[1] // self.n_heads))
        return result

    @abstractmethod
    def attend(self, x: Tokens, asking: Tokens, keys: Lengths, queries: Lengths) -> Tensor:
        """Output of the attention for the asking tokens, (T', d).

        Parameters
        ----------
        x
            T normalised tokens, all of which are attended to.
        asking
            T' normalised tokens that the output is needed for.
        keys, queries
            How many tokens of each cell there are in ``x`` and in ``asking``.
        """

    def forward(self, tokens: Tokens, read: Read) -> Tensor:
        """Apply the layer to T tokens; returns those that are read, (T', d)."""
        normal = tokens.normalised(self.norm)
        attended = self.out(self.attend(normal, normal.of(read), read.all, read.kept))
        x = tokens.of(read).rows + attended
        if x.device.type != "cpu":
            result: Tensor = x + self.network(x)
            return result
        # Few rows at a time: the wide hidden rows stay in the processor's cache, and memory is used again.
        return torch.cat([part + self.network(part) for part in x.split(ROWS)])


class FullLayer(_Layer):
    """Self-attention among the tokens of a cell (Vaswani et al. 2017, equation 1; pre-norm)."""

    def __init__(self, d: int, n_heads: int, config: EncoderConfig) -> None:
        super().__init__(d, n_heads, config)
        self.qkv = nn.Linear(d, 3 * d)

    def attend(self, x: Tokens, asking: Tokens, keys: Lengths, queries: Lengths) -> Tensor:
        """Softmax attention between the tokens of each cell."""
        weight, bias = self.qkv.weight, self.qkv.bias
        d = weight.shape[1]
        q = asking.linear(weight[:d], bias[:d])
        k, v = x.linear(weight[d:], bias[d:]).chunk(2, dim=1)
        q, k, v = self.heads(q), self.heads(k), self.heads(v)
        return attention_by_cell(q, k, v, queries, keys).flatten(1)


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

    def attend(self, x: Tokens, asking: Tokens, keys: Lengths, queries: Lengths) -> Tensor:
        """Attention from the learned points to the tokens, and from the tokens to what the points saw."""
        m, B = len(self.points), len(keys)
        k, v = (self.heads(part) for part in x.linear(*_of(self.tokens_kv)).chunk(2, dim=1))
        query = self.heads(self.points_query(self.points_norm(self.points)))  # (m, h, w)
        seen = attention_by_cell(query.repeat(B, 1, 1), k, v, Lengths.same(m, B), keys)  # (B m, h, w)
        summary = self.points.repeat(B, 1) + self.points_out(seen.flatten(1))  # (B m, d)
        k, v = (self.heads(part) for part in self.summary_kv(self.summary_norm(summary)).chunk(2, dim=1))
        q = self.heads(asking.linear(*_of(self.tokens_query)))
        return attention_by_cell(q, k, v, queries, Lengths.same(m, B)).flatten(1)


def _of(layer: nn.Linear) -> tuple[Tensor, Tensor]:
    return layer.weight, layer.bias


_LAYERS: dict[str, type[_Layer]] = {"full": FullLayer, "inducing": InducingLayer}


class TokenEncoder(nn.Module):
    """A stack of layers of one kind.

    There is no norm after the last layer: the length of a token encodes its expression.
    """

    def __init__(self, config: EncoderConfig, d: int, n_heads: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_LAYERS[config.kind](d, n_heads, config) for _ in range(config.n_layers))

    def forward(self, tokens: Tokens, offsets: Tensor, read: Tensor | None = None) -> Tensor:
        """Encode tokens.

        Parameters
        ----------
        tokens
            The T tokens of all cells.
        offsets : (B + 1,)
            Position of each cell's first token.
        read : (T',) int64 or None
            Sorted positions of the tokens that are needed; the others take part in the attention of all
            layers, but the last layer does not compute them. None: all.

        Returns
        -------
        Encoded tokens, (T', d).
        """
        if not len(tokens):  # DDP waits for a gradient of every parameter
            return tokens.rows + 0.0 * torch.stack([p.sum() for p in self.parameters()]).sum()
        every = Read.every(offsets)
        for layer in self.layers[:-1]:
            tokens = DenseTokens(layer(tokens, every))
        result: Tensor = self.layers[-1](tokens, every if read is None else Read.some(offsets, read))
        return result
