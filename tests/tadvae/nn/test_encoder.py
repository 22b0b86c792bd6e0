"""The token encoder: against loops over cells, whatever the buckets, and linear where it should be."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from reference_attention import encode

from tadvae.nn import encoder as encoder_module
from tadvae.nn.encoder import EncoderConfig, Ragged, TokenEncoder
from tadvae.nn.network import ModelConfig

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
@pytest.mark.parametrize("slack", [0.0, 0.3, 1.0])
@SEEDED
@given(lengths)
def test_equation(kind, slack, lengths):
    """Forward and gradients, with cells of one length together or cells of any lengths padded."""
    encoder, tokens = build(kind), tokens_of(lengths)
    expected = by_cells(encoder, tokens, lengths)
    found, ragged = tokens, Ragged.of(offsets_of(lengths), slack)
    if len(tokens):
        for layer in encoder.layers:
            found = layer(found, ragged)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    weight = torch.linspace(-1, 1, found.numel(), dtype=torch.float64).view_as(found)
    leaves = [tokens, *encoder.parameters()]
    one, two = (
        torch.autograd.grad((each * weight).sum(), leaves, allow_unused=True) for each in (found, expected)
    )
    for a, b in zip(one, two, strict=True):
        assert a is b is None or torch.allclose(a, b, rtol=0, atol=1e-9)


@SEEDED
@given(lengths, st.sampled_from([0.0, 0.125, 0.5]))
def test_buckets(lengths, slack):
    """Every token once, and little padding: never to the longest cell of the batch."""
    ragged = Ragged.of(offsets_of(lengths), slack)
    assert ragged.gather[ragged.back].tolist() == list(range(sum(lengths)))
    assert sum(bucket.n for bucket in ragged.buckets) == sum(n > 0 for n in lengths)
    for bucket in ragged.buckets:
        if slack == 0:
            assert bucket.real is None
        if bucket.real is not None:
            assert (bucket.real.sum(1) >= (1 - slack) * bucket.length).all()


@pytest.mark.parametrize("kind", KINDS)
def test_cells_do_not_see_each_other(kind):
    encoder, sizes = build(kind), [4, 0, 6, 4, 1]
    tokens = tokens_of(sizes).detach()
    together = encoder(tokens, offsets_of(sizes)).split(sizes)
    for part, size, found in zip(tokens.split(sizes), sizes, together, strict=True):
        torch.testing.assert_close(encoder(part, offsets_of([size])), found, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_tokens_does_not_matter(kind):
    encoder, tokens = build(kind), tokens_of([7]).detach()
    order = torch.randperm(7, generator=torch.Generator().manual_seed(0))
    found = encoder(tokens, offsets_of([7]))[order]
    torch.testing.assert_close(encoder(tokens[order], offsets_of([7])), found, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_see_their_cell(kind):
    encoder, tokens = build(kind), tokens_of([5, 5])
    encoder(tokens, offsets_of([5, 5]))[0].sum().backward()
    assert (tokens.grad[:5] != 0).all()
    assert not tokens.grad[5:].any()


@pytest.mark.parametrize("kind", KINDS)
def test_a_gpu_would_pad_a_little(kind, monkeypatch):
    """The padded path gives what the other gives; on a GPU it is the one taken."""
    assert 0 < encoder_module.GPU_SLACK < 0.5
    encoder, sizes = build(kind), [10, 9, 9, 3, 0]
    tokens = tokens_of(sizes).detach()
    plain = encoder(tokens, offsets_of(sizes))
    for layer in encoder.layers:
        tokens = layer(tokens, Ragged.of(offsets_of(sizes), encoder_module.GPU_SLACK))
    torch.testing.assert_close(tokens, plain, rtol=0, atol=1e-12)


def test_inducing_is_linear_in_tokens():
    """Memory for backward grows with the tokens; nothing of it with their square."""

    def saved(n):
        total = [0]

        def pack(tensor):
            total[0] += tensor.numel()
            return tensor

        encoder, tokens = build("inducing"), tokens_of([n])
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            encoder(tokens, offsets_of([n]))
        return total[0]

    small, middle, big = saved(500), saved(1000), saved(4000)
    assert (big - middle) / (middle - small) == pytest.approx(6.0, rel=1e-3)


def test_a_linear_layer_has_no_tokens_to_encode():
    with pytest.raises(ValidationError, match="encoder 'full' needs tokens, and masking 'linear' has none"):
        ModelConfig(pathway={"masking": "linear"}, encoder={"kind": "full"})
    assert ModelConfig(pathway={"masking": "none"}, encoder={"kind": "full"}).encoder.kind == "full"
