"""The decoder over gene lists, the factors' loadings, and what a counterfactual is at the start."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tadvae.nn.causal import CausalConfig, Intervention
from tadvae.nn.decoder import DecoderConfig, GeneDecoder
from tadvae.nn.latent import FactorLoadings, sample
from tadvae.nn.losses import LossConfig
from tadvae.nn.network import ModelConfig, TADVAEModule
from tadvae.nn.strategies.base import PathwayConfig

SEEDED = settings(max_examples=40, deadline=None, derandomize=True)
N_GENES, K = 9, 4


def make_decoder(seed=0, trained=True):
    torch.manual_seed(seed)
    decoder = GeneDecoder(DecoderConfig(d_gene=5, hidden=6), K, N_GENES).double()
    if trained:
        for parameter in decoder.parameters():
            torch.nn.init.normal_(parameter)
    return decoder


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@SEEDED
@given(st.lists(st.integers(0, N_GENES - 1), max_size=12), st.integers(1, 4), st.integers(0, 99))
def test_decoder_equation(genes, n, seed):
    """x̂_g = ⟨W u + net(u), D_g⟩ + b_g over any list, repeats and all."""
    decoder, u = make_decoder(seed), normal(n, K, seed=seed)
    p = {name: value.detach().numpy() for name, value in decoder.named_parameters()}
    expected = np.empty((n, len(genes)))
    for i in range(n):
        inner = p["network.0.weight"] @ u[i].numpy() + p["network.0.bias"]
        inner = np.where(inner > 0, inner, 0.2 * inner)
        h = p["linear.weight"] @ u[i].numpy() + p["network.2.weight"] @ inner + p["network.2.bias"]
        for j, gene in enumerate(genes):
            expected[i, j] = h @ p["gene"][gene] + p["bias"][gene]
    on = torch.tensor(genes, dtype=torch.int64)
    hidden = decoder.hidden(u)
    np.testing.assert_allclose(decoder(hidden, on).detach().numpy(), expected, rtol=1e-10, atol=1e-12)
    change = decoder.change(hidden, on).detach().numpy()
    np.testing.assert_allclose(change + p["bias"][genes], expected, rtol=1e-10, atol=1e-12)


def test_decoder_starts_linear():
    decoder, u, v = make_decoder(trained=False), normal(3, K), normal(3, K, seed=1)
    assert torch.equal(decoder.hidden(u), decoder.linear(u))
    torch.testing.assert_close(decoder.hidden(u + v), decoder.hidden(u) + decoder.hidden(v))
    decoder.hidden(u).sum().backward()
    assert decoder.network[-1].weight.grad.any()  # and can leave the straight line


def make_loadings(n_pathways, n_factors=3, seed=0):
    torch.manual_seed(seed)
    loadings = FactorLoadings(n_pathways, n_factors).double()
    for parameter in loadings.parameters():
        torch.nn.init.normal_(parameter)
    return loadings


@SEEDED
@given(st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=4), st.integers(0, 99))
def test_loadings_equation(available, seed):
    """δ over the leaky activities that can be seen, times sqrt(P / available)."""
    loadings, activity = make_loadings(5, seed=seed), normal(len(available), 5, seed=seed)
    mean, log_variance = loadings(activity, torch.tensor(available))
    for i, seen in enumerate(available):
        scale = (5 / sum(seen)) ** 0.5 if any(seen) else 0.0
        for k in range(3):
            for found, part in ((mean, loadings.mean), (log_variance, loadings.log_variance)):
                expected = part.bias[k].item()
                for p in range(5):
                    a = activity[i, p].item()
                    expected += seen[p] * part.weight[k, p].item() * (a if a > 0 else 0.2 * a) * scale
                expected = min(max(expected, -12.0), 6.0) if part is loadings.log_variance else expected
                assert found[i, k].item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_unavailable_pathways_change_nothing():
    loadings, available = (
        make_loadings(6),
        torch.tensor([[True, False, True, True, False, True]]).expand(2, -1),
    )
    activity = normal(2, 6).requires_grad_()
    mean, log_variance = loadings(activity, available)
    other = torch.where(available, activity, torch.full_like(activity, 1e9))
    for found, expected in zip(loadings(other, available), (mean, log_variance), strict=True):
        assert torch.equal(found, expected)
    (mean.sum() + log_variance.sum()).backward()
    assert not activity.grad[~available].any()
    assert activity.grad[available].all()
    for part in (loadings.mean, loadings.log_variance):
        assert not part.weight.grad[:, ~available[0]].any()
        assert part.weight.grad[:, available[0]].all()


def test_variance_of_factors_does_not_depend_on_the_panel():
    torch.manual_seed(0)
    loadings, activity = FactorLoadings(200, 400).double(), normal(1, 200).expand(2, -1)
    available = torch.ones(2, 200, dtype=torch.bool)
    available[1, 20:] = False
    full, tenth = (loadings(activity, available)[0] - loadings.mean.bias).detach()
    assert tenth.std().item() == pytest.approx(full.std().item(), rel=0.25)  # without scaling a third


def test_no_pathway_available():
    loadings = make_loadings(4)
    mean, log_variance = loadings(normal(1, 4), torch.zeros(1, 4, dtype=torch.bool))
    assert torch.equal(mean[0], loadings.mean.bias)
    assert torch.equal(log_variance[0], loadings.log_variance.bias)


def test_log_variance_is_bounded():
    loadings = make_loadings(3)
    _, high = loadings(
        torch.full((1, 3), 1e6).double() * loadings.log_variance.weight[:1].sign(), torch.ones(1, 3) > 0
    )
    assert high.max().item() == 6.0
    _, low = loadings(
        torch.full((1, 3), 1e6).double() * -loadings.log_variance.weight[:1].sign(), torch.ones(1, 3) > 0
    )
    assert high.exp().isfinite().all()
    assert low.min().item() >= -12.0


def test_sample():
    mean, log_variance = normal(40, 5), normal(40, 5, seed=1)
    assert sample(mean, log_variance, None) is mean
    noise = normal(40, 5, seed=7)
    drawn = sample(mean, log_variance, torch.Generator().manual_seed(7))
    torch.testing.assert_close(drawn, mean + noise * log_variance.exp().sqrt())
    assert torch.equal(drawn, sample(mean, log_variance, torch.Generator().manual_seed(7)))
    assert not torch.equal(drawn, sample(mean, log_variance, torch.Generator().manual_seed(8)))


def build(vocabulary, **decoder):
    torch.manual_seed(3)
    config = ModelConfig(
        pathway=PathwayConfig(d_embed=8, n_heads=2),
        causal=CausalConfig(n_factors=K, hidden=6),
        decoder=DecoderConfig(d_gene=5, hidden=6, **decoder),
    )
    return TADVAEModule(config, LossConfig(), vocabulary).double()


def shifts_of(module, *bags):
    flat = [(t, m, i) for i, pairs in enumerate(bags) for t, m in pairs]
    columns = torch.tensor(flat, dtype=torch.int64).reshape(-1, 3).T
    plan = Intervention(
        columns[0], columns[1], torch.zeros(len(flat), dtype=torch.int64), columns[2], len(bags)
    )
    return module.causal.shifts(plan, module.decoder.gene, 1.0)


def test_abduction_starts_as_the_control_cell_plus_a_linear_change(small_vocabulary):
    module = build(small_vocabulary)
    genes, profile = module.genes_0, module.profiles_0[0]
    cells, z = normal(3, len(genes)).abs(), normal(3, K, seed=1)
    up, down, both, none = shifts_of(module, [(1, 0)], [(2, 1)], [(1, 0), (2, 1)], [])
    before = module.decoder.hidden(module.causal(z))

    def predicted(shift):
        after = module.decoder.hidden(module.causal(z + shift))
        return module.counterfactual(before, after, cells, genes, profile)

    G = np.triu(module.causal.graph.detach().numpy(), 1)
    W, D = module.decoder.linear.weight.detach().numpy(), module.decoder.gene.detach().numpy()
    for shift in (up, down, both):
        change = shift.detach().numpy() @ np.linalg.inv(np.eye(K) - G) @ W.T @ D[genes.numpy()].T  # (G,)
        np.testing.assert_allclose(predicted(shift).detach().numpy(), cells.numpy() + change, atol=1e-12)
    assert torch.equal(predicted(none), cells)  # not perturbed: the control cell itself
    torch.testing.assert_close(predicted(both) - cells, predicted(up) + predicted(down) - 2 * cells)


@pytest.mark.parametrize("decode", ["residual", "direct"])
def test_decode_and_mean_counterfactual(small_vocabulary, decode):
    module = build(small_vocabulary, decode=decode, counterfactual="mean")
    genes, profile = module.genes_1, module.profiles_1[0]
    cells, before, after = normal(3, len(genes)), normal(3, 5, seed=1), normal(3, 5, seed=2)
    expected = module.decoder(after, genes) + (profile if decode == "residual" else 0.0)
    assert torch.equal(module.decode(after, genes, profile), expected)
    assert torch.equal(module.counterfactual(before, after, cells, genes, profile), expected)
    assert profile.tolist() == small_vocabulary.contexts[2].profile.tolist()


def test_config_refuses_unknown_words():
    with pytest.raises(ValidationError):
        DecoderConfig(decode="sideways")
