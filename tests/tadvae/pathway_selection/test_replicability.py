"""Replicability: its definition, NetActivity's three steps, and what they find in data with a known truth."""

import numpy as np
import pytest
import torch
from torch import nn

from tadvae.pathway_selection import replicability as module
from tadvae.pathway_selection.replicability import (
    ReplicabilityConfig,
    ThreeStepConfig,
    TrainingData,
    replicability,
    train_once,
)

SHORT = ThreeStepConfig(epochs=(6, 4, 6), batch_size=64)


def test_smallest_of_all_pairs():
    rng = np.random.default_rng(0)
    runs = [rng.normal(size=(50, 4)) for _ in range(4)]
    for run in runs:
        run[:, 1] = 3.0 - 2.0 * runs[0][:, 1] * (
            1 if run is runs[1] else -1
        )  # a sign and a scale do not matter
        run[:, 2] = 1.5  # an activity that never varies
    found = replicability(runs)
    expected = min(
        abs(np.corrcoef(runs[i][:, 0], runs[j][:, 0])[0, 1]) for i in range(4) for j in range(i + 1, 4)
    )
    assert found[0] == pytest.approx(expected, abs=1e-12)
    assert found[1] == pytest.approx(1.0, abs=1e-12)
    assert found[2] == 0.0
    assert replicability([run.astype(np.float32) for run in runs])[0] == pytest.approx(expected, abs=1e-5)


def test_published_settings():
    published = ThreeStepConfig()
    assert published.epochs == (25, 20, 50)
    assert published.learning_rates == (0.01, 0.01, 0.001)
    assert published.batch_size == 128
    assert ReplicabilityConfig().runs == 6


def random_data(n=150, sizes=(3, 5, 2, 6), n_genes=9, seed=0) -> TrainingData:
    rng = np.random.default_rng(seed)
    gene = np.concatenate([np.sort(rng.choice(n_genes, size, replace=False)) for size in sizes])
    values = rng.normal(size=(n, n_genes)).astype(np.float32)
    return TrainingData(values, np.repeat(np.arange(len(sizes)), sizes), gene, len(sizes))


def test_step_one_trains_every_set_as_if_alone():
    """All sets at once are the |P| → 1 → |P| autoencoders of plain torch, each with an Adam of its own."""
    data = random_data()
    config = ThreeStepConfig(epochs=(3, 0, 0), batch_size=64)
    generator = torch.Generator().manual_seed(1)
    start = [torch.randn(len(data.gene), generator=generator) for _ in range(2)]
    bias = torch.randn(data.n_pathways, generator=generator)
    values, pathway, gene = map(torch.from_numpy, (data.values, data.pathway, data.gene))
    weight, found_bias = module._train_mini(
        values, pathway, gene, (start[0], bias, start[1]), config, torch.Generator().manual_seed(5)
    )
    for p in range(data.n_pathways):
        mine = pathway == p
        x = values[:, gene[mine]]
        encoder, decoder = nn.Linear(x.shape[1], 1), nn.Linear(1, x.shape[1])
        with torch.no_grad():
            encoder.weight[0], encoder.bias[0] = start[0][mine], bias[p]
            decoder.weight[:, 0], decoder.bias[:] = start[1][mine], 0.0
        optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=0.01, eps=1e-7)
        order = torch.Generator().manual_seed(5)
        for _ in range(3):
            for batch in torch.randperm(len(x), generator=order).split(64):
                loss = nn.functional.mse_loss(decoder(encoder(x[batch])), x[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        torch.testing.assert_close(weight[mine], encoder.weight[0].detach(), atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(found_bias[p], encoder.bias[0].detach(), atol=2e-5, rtol=1e-4)


def test_encoder_sees_member_genes_alone():
    data = random_data()
    before = train_once(data, SHORT, seed=3)
    assert before.shape == (150, 4)
    assert before.dtype == np.float32
    values, pathway, gene = map(torch.from_numpy, (data.values, data.pathway, data.gene))
    weight, bias = torch.randn(len(gene)), torch.randn(4)
    mask = torch.zeros(4, 9)
    mask[pathway, gene] = weight
    torch.testing.assert_close(
        module._weighted_sums(values, pathway, gene, weight, bias),
        values @ mask.T + bias,
        atol=1e-5,
        rtol=1e-5,
    )


def test_the_seed_decides():
    data = random_data()
    np.testing.assert_array_equal(train_once(data, SHORT, seed=3), train_once(data, SHORT, seed=3))
    assert not np.allclose(train_once(data, SHORT, seed=3), train_once(data, SHORT, seed=4))


def test_steps_in_pieces_are_the_same(monkeypatch):
    """Sets trained in several pieces see other batches, but end at the same activities up to their sign."""
    data = factor_data()
    whole = train_once(data, SHORT, seed=0)
    monkeypatch.setattr(module, "EDGES_AT_ONCE", 12)
    assert len(module._chunks(np.cumsum(np.bincount(data.pathway)).tolist())) > 2
    assert (replicability([whole, train_once(data, SHORT, seed=0)])[:4] > 0.99).all()


def factor_data(n=1000, seed=0) -> TrainingData:
    """Four sets of genes that one factor drives, and four whose genes have nothing in common."""
    rng = np.random.default_rng(seed)
    size, values = 8, []
    for p in range(8):
        noise = rng.normal(size=(n, size))
        values.append(noise if p >= 4 else 1.5 * rng.normal(size=(n, 1)) + noise)
    table = np.concatenate(values, axis=1)
    table = ((table - table.mean(axis=0)) / table.std(axis=0)).astype(np.float32)
    return TrainingData(table, np.repeat(np.arange(8), size), np.arange(8 * size), 8)


def test_a_common_factor_is_found_again_and_noise_is_not():
    data = factor_data(500)
    # few cells, so small batches: step 3 needs its steps to undo what ELU does to a flipped sign
    config = ThreeStepConfig(epochs=(8, 5, 40), batch_size=16)
    scores = replicability([train_once(data, config, seed) for seed in range(3)])
    assert (scores[:4] > 0.9).all(), scores
    assert (scores[4:] < 0.7).all(), scores


@pytest.mark.parametrize(("sizes", "expected"), [((3, 3, 3), 3), ((50,), 1), ((1, 1), 1)])
def test_chunks_hold_every_set_once(monkeypatch, sizes, expected):
    monkeypatch.setattr(module, "EDGES_AT_ONCE", 3)
    spans = module._chunks(np.cumsum(sizes).tolist())
    assert [p for a, b in spans for p in range(a, b)] == list(range(len(sizes)))
    assert len(spans) == expected
