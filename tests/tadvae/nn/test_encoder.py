"""The token encoder: against loops over cells, by slices and by buckets, and linear where it should be."""

from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from reference_attention import encode

from tadvae.nn import encoder as encoder_module
from tadvae.nn.cell_attention import SLACK, Lengths, by_buckets, by_lengths, by_slices
from tadvae.nn.encoder import ROWS, EncoderConfig, TokenEncoder
from tadvae.nn.network import ModelConfig
from tadvae.nn.token_rows import DenseTokens, ScaledTokens

SEEDED = settings(max_examples=15, deadline=None, derandomize=True)
D, HEADS = 8, 2
KINDS = ["full", "inducing"]
lengths = st.lists(st.integers(0, 9), min_size=1, max_size=8)


def build(kind, seed=0, **options):
    torch.manual_seed(seed)
    return TokenEncoder(EncoderConfig(kind=kind, n_inducing=3, **options), D, HEADS).double()


def offsets_of(lengths):
    return torch.tensor(np.concatenate([[0], np.cumsum(lengths)]))


def tokens_of(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(sum(lengths), D, generator=generator, dtype=torch.float64).requires_grad_()


def by_cells(encoder, tokens, lengths):
    parts = [encode(encoder, part, HEADS) for part in tokens.split(lengths) if len(part)]
    return torch.cat(parts) if parts else tokens


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("path", [by_slices, by_buckets], ids=["CPU", "GPU"])
@SEEDED
@given(lengths, st.integers(0, 9))
def test_equation(kind, path, lengths, every):
    """Forward and gradients, for all tokens or for those that are read, on both paths."""
    encoder, tokens = build(kind), tokens_of(lengths)
    read = torch.arange(0, len(tokens), every) if every else None
    expected = by_cells(encoder, tokens, lengths)
    if read is not None:
        expected = expected[read]
    with patch.object(encoder_module, "attention_by_cell", path):
        found = encoder(DenseTokens(tokens), offsets_of(lengths), read)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    weight = torch.linspace(-1, 1, found.numel(), dtype=torch.float64).view_as(found)
    leaves = [tokens, *encoder.parameters()]
    one, two = (
        torch.autograd.grad((each * weight).sum(), leaves, allow_unused=True) for each in (found, expected)
    )
    for a, b in zip(one, two, strict=True):
        none = torch.zeros(()) if a is None else torch.zeros_like(a)  # a gradient of zero, or none at all
        a, b = (none if each is None else each for each in (a, b))
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@SEEDED
@given(lengths, st.integers(0, 9), st.sampled_from([1, 2]))
def test_scaled_tokens(kind, lengths, every, n_layers):
    """Tokens ``x·E_g``, silent ones among them, against the same rows: forward and gradients."""
    encoder, generator = build(kind, n_layers=n_layers), torch.Generator().manual_seed(sum(lengths))
    genes = torch.randn(7, D, generator=generator, dtype=torch.float64).requires_grad_()
    gene_ids = torch.randint(7, (sum(lengths),), generator=generator)
    x = torch.rand(len(gene_ids), generator=generator, dtype=torch.float64).round(decimals=1)
    read = torch.arange(0, len(x), every) if every else None
    offsets, leaves = offsets_of(lengths), [genes, *encoder.parameters()]
    results = []
    for tokens in (ScaledTokens.from_genes(genes, gene_ids, x), DenseTokens(genes[gene_ids] * x[:, None])):
        found = encoder(tokens, offsets, read)
        weight = torch.linspace(-1, 1, found.numel(), dtype=torch.float64).view_as(found)
        results.append([found, *torch.autograd.grad((found * weight).sum(), leaves, allow_unused=True)])
    for a, b in zip(*results, strict=True):
        none = torch.zeros((), dtype=torch.float64)
        a, b = (none if each is None else each for each in (a, b))
        torch.testing.assert_close(a, b.expand_as(a), rtol=1e-9, atol=1e-9)


def test_scaled_tokens_are_normalised_once():
    encoder = build("full")
    tokens = ScaledTokens.from_genes(torch.ones(2, D).double(), torch.tensor([1]), torch.ones(1).double())
    with pytest.raises(ValueError, match="normalised once"):
        tokens.normalised(encoder.layers[0].norm).normalised(encoder.layers[0].norm)


def test_rows_of_the_feed_forward_network_do_not_matter():
    encoder, tokens = build("full"), DenseTokens(tokens_of([7]).detach())
    expected = encoder(tokens, offsets_of([7]))
    with patch.object(encoder_module, "ROWS", 3):
        torch.testing.assert_close(encoder(tokens, offsets_of([7])), expected, rtol=0, atol=1e-12)


@SEEDED
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9)), min_size=1, max_size=6))
def test_attention_by_cell(sizes):
    """Against a loop over cells, heads and queries; queries that see no key are zero."""
    n_queries, n_keys = (Lengths(each) for each in zip(*sizes, strict=True))
    q, k, v = (
        tokens_of([sum(n)], seed).detach().view(-1, HEADS, D // HEADS)
        for seed, n in enumerate((n_queries, n_keys, n_keys))
    )
    expected = torch.zeros_like(q)
    at_q = at_k = 0
    for n, m in sizes:
        for i in range(at_q, at_q + n) if m else ():
            for h in range(HEADS):
                keys, values = k[at_k : at_k + m, h], v[at_k : at_k + m, h]
                weight = torch.exp(keys @ q[i, h] * 0.7)
                expected[i, h] = weight @ values / weight.sum()
        at_q, at_k = at_q + n, at_k + m
    for path in (by_slices, by_buckets):
        found = path(q, k, v, n_queries, n_keys, 0.7)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@SEEDED
@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 9)), min_size=1, max_size=6))
def test_a_gpu_attends_in_one_call(sizes):
    """What PyTorch's kernel for variable lengths is given means the same; the kernel itself needs a GPU."""
    n_queries, n_keys = (Lengths(part) for part in zip(*sizes, strict=True))
    generator = torch.Generator().manual_seed(0)
    rows = (sum(n_queries), sum(n_keys), sum(n_keys))
    q, k, v = (torch.randn(n, HEADS, 4, generator=generator, dtype=torch.float64) for n in rows)

    def kernel(q, k, v, starts_q, starts_k, longest_q, longest_k):
        assert starts_q.dtype == starts_k.dtype == torch.int32
        assert (longest_q, longest_k) == (max(n_queries), max(n_keys))
        found = by_slices(q, k, v, Lengths.of(starts_q), Lengths.of(starts_k))
        return found

    with patch("torch.nn.attention.varlen.varlen_attn", kernel):
        found = by_lengths(q, k, v, n_queries, n_keys, 0.7)
    torch.testing.assert_close(found, by_slices(q, k, v, n_queries, n_keys, 0.7), rtol=0, atol=1e-12)


def test_a_gpu_pads_a_little():
    """Cells of nearly the same length share a call; no cell is padded to the longest of the batch."""
    calls = []

    def attend(q, k, v, **options):
        calls.append(k.shape)
        return q

    sizes = Lengths([100, 99, 88, 40, 38, 1])
    rows = torch.zeros(sum(sizes), HEADS, D // HEADS)
    with patch("tadvae.nn.cell_attention.scaled_dot_product_attention", attend):
        by_buckets(rows, rows, rows, sizes, sizes, None)
    assert [(n, length) for n, _, length, _ in calls] == [(3, 100), (2, 40), (1, 1)]
    assert 0 < SLACK < 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_cells_do_not_see_each_other(kind):
    encoder, sizes = build(kind), [4, 0, 6, 4, 1]
    tokens = tokens_of(sizes).detach()
    together = encoder(DenseTokens(tokens), offsets_of(sizes)).split(sizes)
    for part, size, found in zip(tokens.split(sizes), sizes, together, strict=True):
        alone = encoder(DenseTokens(part), offsets_of([size]))
        torch.testing.assert_close(alone, found, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_tokens_does_not_matter(kind):
    encoder, tokens = build(kind), tokens_of([7]).detach()
    order = torch.randperm(7, generator=torch.Generator().manual_seed(0))
    found = encoder(DenseTokens(tokens), offsets_of([7]))[order]
    torch.testing.assert_close(
        encoder(DenseTokens(tokens[order]), offsets_of([7])), found, rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_see_their_cell(kind):
    encoder, tokens = build(kind), tokens_of([5, 5])
    encoder(DenseTokens(tokens), offsets_of([5, 5]))[0].sum().backward()
    assert (tokens.grad[:5] != 0).all()
    assert not tokens.grad[5:].any()


def test_inducing_is_linear_in_tokens():
    """Memory for backward grows with the tokens; nothing of it with their square."""

    def saved(n):
        total = [0]

        def pack(tensor):
            total[0] += tensor.numel()
            return tensor

        encoder, tokens = build("inducing"), tokens_of([n])
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            encoder(DenseTokens(tokens), offsets_of([n]))
        return total[0]

    small, middle, big = saved(ROWS), saved(2 * ROWS), saved(8 * ROWS)
    assert (big - middle) / (middle - small) == pytest.approx(6.0, rel=1e-3)


def test_a_linear_layer_has_no_tokens_to_encode():
    with pytest.raises(ValidationError, match="encoder 'full' needs tokens, and masking 'linear' has none"):
        ModelConfig(pathway={"masking": "linear"}, encoder={"kind": "full"})
    assert ModelConfig(pathway={"masking": "none"}, encoder={"kind": "full"}).encoder.kind == "full"
