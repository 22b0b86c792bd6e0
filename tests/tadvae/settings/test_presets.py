"""Presets: the published numbers of parameters and equations, and losses that may not drift."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from tadvae.base.errors import UserError
from tadvae.data.batches import Batch
from tadvae.data.entries import ContextEntry, DatasetEntry, TargetEntry
from tadvae.data.vocabulary import Vocabulary
from tadvae.nn.network import TADVAEModule
from tadvae.nn.packed import PackedCells
from tadvae.pathways.membership import Membership, hidden_units
from tadvae.settings.experiment import ExperimentConfig
from tadvae.settings.presets import PRESETS, settings_of
from tadvae.training.learner import Learner, build_module

GOLDEN = Path(__file__).parents[2] / "golden"
G, Z, HIDDEN, TARGETS, P = 60, 105, 128, 105, 12


def vocabulary(membership, n_targets=TARGETS):
    """One dataset that measures every gene, as in the publications."""
    genes = pd.DataFrame({"gene": [f"G{g}" for g in range(G)], "ensembl_id": None, "symbol": None})
    targets = [TargetEntry(f"G{t}" if t < G else f"T{t}", t if t < G else -1, True) for t in range(n_targets)]
    dataset = DatasetEntry("norman", np.arange(G), "cp10k", "cells", 0, dict.fromkeys(range(n_targets), 0))
    profile = np.linspace(0, 2, G).astype(np.float32)
    context = ContextEntry(0, "K562", profile, 9)
    return Vocabulary(genes, membership, 1, [dataset], [context], targets, ["CRISPRa"], [1], "own")


def pathways():
    rng = np.random.default_rng(0)
    members = [np.sort(rng.choice(G, 5 + p, replace=False)) for p in range(P)]
    ids = [f"GO:{p}" for p in range(P)]
    return Membership(
        ids, ids, np.repeat(np.arange(P), [len(m) for m in members]), np.concatenate(members), G
    )


def build(name, membership):
    config = ExperimentConfig.load(None, [], settings_of(name))
    torch.manual_seed(0)
    return TADVAEModule(config.model, config.loss, vocabulary(membership))


def count(*parts):
    return sum(parameter.numel() for part in parts for parameter in part.parameters())


def latent_and_decoder(width):
    """Parameters after the encoder's first layer of ``width`` units, counted from the code of Zhang et al."""
    both = 2 * (width * Z + Z)  # mean and variance
    decoder = (Z * HIDDEN + HIDDEN) + (HIDDEN * G + G)
    intervention = (TARGETS * 128 + 128) + (128 * Z + Z) + TARGETS  # W1, W2, c_shift
    return both + decoder + intervention + Z * Z  # and G


def test_dvae_has_the_published_number_of_parameters():
    assert count(build("dvae", hidden_units(HIDDEN, G))) == (G * HIDDEN + HIDDEN) + latent_and_decoder(HIDDEN)


@pytest.mark.parametrize("name", ["sena-1e-3", "sena-1e-2"])
def test_sena_has_the_published_number_of_parameters(name):
    assert count(build(name, pathways())) == (G * P + P) + latent_and_decoder(P)


def test_sena_without_leak_keeps_only_the_weights_that_the_mask_lets_live():
    membership = pathways()
    assert count(build("sena", membership)) == (len(membership.gene) + P) + latent_and_decoder(P)


def test_netactivity_has_the_published_number_of_parameters():
    membership = pathways()
    module = build("netactivity", membership)
    assert count(module.pathway, module.factors) == len(membership.gene) + P
    assert count(module.decoder) == P * G + G


def leaky(x):
    return np.where(x > 0, x, 0.2 * x)


def dense_cells(rng, n):
    x = rng.gamma(2.0, 1.0, (n, G)) * (rng.random((n, G)) < 0.4)
    cell, gene = np.nonzero(x)
    packed = PackedCells(
        torch.from_numpy(gene.copy()), torch.from_numpy(x[cell, gene]), torch.from_numpy(cell.copy()), n,
        (torch.arange(G),), torch.zeros(n, dtype=torch.int64),
    )  # fmt: skip
    return x, packed


@pytest.mark.parametrize(("name", "leak"), [("dvae", 0.0), ("sena", 0.0), ("sena-1e-2", 1e-2)])
def test_forward_is_the_published_equation(name, leak):
    """Encoder, latent, causal layer and decoder of the discrepancy VAE and of SENA, in numpy."""
    rng = np.random.default_rng(1)
    membership = hidden_units(HIDDEN, G) if name == "dvae" else pathways()
    module = build(name, membership).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.1)
    w = {key: value.detach().numpy() for key, value in module.named_parameters()}
    x, packed = dense_cells(rng, 7)

    mask = membership.dense().T.astype(float)  # (G, P)
    if leak:
        W = w["pathway.weight"] * np.where(mask > 0, 1.0, leak)
    else:
        W = np.zeros(mask.shape)
        W[module.pathway.edges.gene.numpy(), module.pathway.edges.pathway.numpy()] = w["pathway.weight"]
    hidden = leaky(x @ W + w["pathway.bias"])
    mean = hidden @ w["factors.mean.weight"].T + w["factors.mean.bias"]
    spread = hidden @ w["factors.log_variance.weight"].T + w["factors.log_variance.bias"]
    variance = np.log1p(np.exp(spread))
    available = torch.ones(7, membership.n_pathways, dtype=torch.bool)
    _, got_mean, got_log = module.encode(packed, available)
    np.testing.assert_allclose(got_mean.detach(), mean, rtol=1e-10)
    np.testing.assert_allclose(got_log.exp().detach(), variance, rtol=1e-10)

    temperature = module.loss_config.temperature.at(99.0)
    bags = torch.tensor([0, 1, 1])
    from tadvae.nn.causal import Intervention

    targets = torch.tensor([3, 8, 20])
    zero = torch.zeros(3, dtype=torch.int64)
    shifts = module.causal.shifts(
        Intervention(targets, zero, zero, bags, 2), module.decoder.gene, temperature
    )
    one_hot = np.eye(TARGETS)[targets]
    inner = leaky(one_hot @ w["causal.assign.0.weight"].T + w["causal.assign.0.bias"])
    logits = temperature * (inner @ w["causal.assign.2.weight"].T + w["causal.assign.2.bias"])
    b = np.exp(logits - logits.max(1, keepdims=True))
    b = b / b.sum(1, keepdims=True) * w["causal.size"][targets][:, None]
    np.testing.assert_allclose(shifts.detach(), [b[0], b[1] + b[2]], rtol=1e-9)

    u = (mean + b[1] + b[2]) @ np.linalg.inv(np.eye(Z) - np.triu(w["causal.graph"], 1))
    d = leaky(u @ w["decoder.network.0.weight"].T + w["decoder.network.0.bias"])
    expected = leaky(d @ w["decoder.gene"].T + w["decoder.bias"])
    after = module.decoder.hidden(module.causal(got_mean + shifts[1]))
    got = module.counterfactual(after, after, torch.zeros(7, G), torch.arange(G), torch.ones(G))
    np.testing.assert_allclose(got.detach(), expected, rtol=1e-9)


def test_published_schedules():
    """As Zhang et al.: α 0 to epoch 4, full at 49; β 0 to 9, full at 99; temperature 1 to 4, full at 99."""
    for name, alpha, beta, temperature in (("dvae", 10.0, 2.0, 5.0), ("sena", 1.0, 1.0, 100.0)):
        loss = PRESETS[name]().loss
        assert [loss.alpha.at(e) for e in (0, 4, 5, 49, 99)] == [0, 0, 0, alpha, alpha]
        assert loss.alpha.at(27) == pytest.approx(alpha / 2)
        assert [loss.beta.at(e) for e in (0, 9, 10, 99)] == [0, 0, 0, beta]
        assert [loss.temperature.at(e) for e in (0, 4, 5, 99)] == [1, 1, 1, temperature]
    for config in (PRESETS[name]() for name in ("dvae", "sena", "sena-1e-2", "tadvae-paper")):
        ends = [schedule.end for schedule in (config.loss.alpha, config.loss.beta, config.loss.temperature)]
        assert max(ends) < config.train.epochs == 100  # every schedule reaches its end in training
        assert (config.train.learning_rate, config.train.clip_norm, config.train.weight_average) == (
            1e-3, None, None,
        )  # fmt: skip
        assert (config.stream.bags_per_batch, config.stream.cells_per_bag) == (1, 32)
        assert not config.stream.control_bags
    last = PRESETS["netactivity"]()
    assert (last.train.epochs, last.train.learning_rate) == (25 + 20 + 50, 1e-3)
    assert last.stream.bags_per_batch * last.stream.cells_per_bag == 128
    assert PRESETS["dvae"]().loss.sigma == 1000.0
    assert PRESETS["sena"]().loss.sigma == 200.0
    # at equal β, SENA's KL term is 1 / (z·B) of the discrepancy VAE's: 1/3360 for z = 105, B = 32
    from tadvae.nn.losses import kl_divergence

    mean, log_variance = torch.randn(32, 105), torch.randn(32, 105)
    ratio = kl_divergence(mean, log_variance) / kl_divergence(mean, log_variance, "mean")
    assert float(ratio) == pytest.approx(3360, rel=1e-4)


def test_a_preset_is_a_base_that_settings_lie_over():
    config = ExperimentConfig.load(None, ["loss.sigma=7", "model.causal.n_factors=4"], settings_of("sena"))
    assert config.loss.sigma == 7.0
    assert config.loss.kl == "mean"
    assert config.model.causal.n_factors == 4
    assert config.model.causal.shift == "assigned"
    with pytest.raises(UserError, match="no such preset; take one of tadvae"):
        settings_of("gears")


SMALL = ["model.causal.n_factors=4", "model.causal.hidden=6", "model.decoder.d_gene=5"]
SMALL_ATTENTION = ["model.pathway.d_embed=8", "model.pathway.n_heads=2"]


def golden_losses(name, small_vocabulary, small_batch, pack_small):
    """Total loss of four steps, late enough for every schedule to be on; encode, shift, decode, learn."""
    settings = SMALL + (SMALL_ATTENTION if name.startswith("tadvae") else [])
    config = ExperimentConfig.load(None, settings, settings_of(name))
    words = small_vocabulary
    if config.pathways.units is not None:
        words = replace(words, membership=hidden_units(config.pathways.units, words.n_genes))
    learner = Learner(config, build_module(config, words))
    batch = pack_small(Batch(small_batch.bags), torch.float32)
    available = torch.from_numpy(words.available)
    assert available.any()
    return [float(learner.step(batch, 60.0, rank=0, number=n)["loss"]) for n in range(4)]


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_golden_losses(name, small_vocabulary, small_batch, pack_small):
    """A change of these figures is a change of the model: make it knowingly, with TADVAE_WRITE_GOLDEN=1."""
    losses = golden_losses(name, small_vocabulary, small_batch, pack_small)
    file = GOLDEN / f"{name}.json"
    if os.environ.get("TADVAE_WRITE_GOLDEN"):
        file.write_text(json.dumps(losses) + "\n")
    assert losses == pytest.approx(json.loads(file.read_text()), rel=2e-4)
