"""Weights of members that are learned from two halves of a panel."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tadvae.cells.ragged import Cells
from tadvae.nn.edges import EdgeTable
from tadvae.nn.strategies.base import PathwayConfig, pathway_layer
from tadvae.pathways.membership import Membership
from tadvae.training.agreement import MIN_CELLS, control_samples, disagreement, learn_agreement

GENES, PATHWAYS, MEMBERS = 60, 5, 12


@pytest.fixture(scope="module")
def planted():
    """Cells whose pathways rise and fall, and members of which the last four of each are noise."""
    rng = np.random.default_rng(0)
    state = rng.normal(size=(300, PATHWAYS))
    X = rng.normal(0.0, 0.3, (300, GENES)) + 3.0
    for p in range(PATHWAYS):
        X[:, MEMBERS * p : MEMBERS * p + 8] += state[:, [p]]
        X[:, MEMBERS * p + 8 : MEMBERS * (p + 1)] += rng.normal(size=(300, 4))
    return np.maximum(X, 0.0).astype(np.float32)


@pytest.fixture(scope="module")
def mask():
    ids = [f"P{p}" for p in range(PATHWAYS)]
    return Membership(ids, ids, np.repeat(np.arange(PATHWAYS), MEMBERS), np.arange(GENES), GENES)


def cells_of(X, genes=None):
    """Rows as cells that measure some genes, or all."""
    if genes is not None:
        X = np.where(np.isin(np.arange(GENES), genes), X, 0.0)
    cell, gene = X.nonzero()
    offsets = np.searchsorted(cell, np.arange(len(X) + 1))
    return Cells(gene, X[cell, gene], offsets, np.full(len(X), np.nan))


def test_the_loss_is_its_definition(planted, mask):
    """Cosines of the activities of every pair of cells, written out."""
    rng = np.random.default_rng(1)
    genes = np.sort(rng.permutation(GENES)[:40])
    (sample,) = control_samples(mask, [genes], {(0, 0): cells_of(planted, genes)}, 0)
    logit, first = torch.from_numpy(rng.normal(size=GENES)), torch.from_numpy(rng.random(GENES) < 0.5)
    scores = sample.scores[:30]
    values = np.full((30, GENES), np.nan)
    values[:, mask.gene[sample.edges.numpy()]] = (scores @ sample.loads.T).numpy()
    found = []
    for side in (first.numpy(), ~first.numpy()):
        activity = np.zeros((30, PATHWAYS))
        for p in range(PATHWAYS):
            inside = [g for g in genes if g // MEMBERS == p and side[g]]
            if not inside:
                activity[:, p] = np.nan
                continue
            share = np.exp(logit.numpy()[inside])
            activity[:, p] = np.sqrt(len(inside)) * values[:, inside] @ (share / share.sum())
        found.append(activity)
    seen = ~np.isnan(found[0] + found[1]).any(0)
    unit = []
    for activity in found:
        a = activity[:, seen] - activity[:, seen].mean(0)
        a = a - a.mean(1, keepdims=True)
        unit.append(a / np.linalg.norm(a, axis=1, keepdims=True))
    similarity = unit[0] @ unit[1].T / 0.1
    expected = 0.0
    for table in (similarity, similarity.T):
        expected -= np.mean(np.diag(table) - np.log(np.exp(table).sum(1))) / 2
    loss = disagreement(logit, mask, sample, first, scores)
    assert float(loss) == pytest.approx(expected, rel=1e-9)


def test_members_that_follow_the_others_get_more_weight(planted, mask):
    every = np.arange(GENES)
    samples = control_samples(
        mask, [every], {(0, 0): cells_of(planted[:150]), (0, 1): cells_of(planted[150:])}, 3
    )
    learned = learn_agreement(mask, samples, 3)
    logit = learned.logit.reshape(PATHWAYS, MEMBERS)
    assert (logit[:, :8].mean(1) > logit[:, 8:].mean(1) + 0.1).all()
    again = learn_agreement(mask, samples, 3)
    np.testing.assert_array_equal(again.logit, learned.logit)
    assert (learn_agreement(mask, samples, 4).logit != learned.logit).any()


def test_two_panels_teach_the_same_pathways(planted, mask):
    """A gene that only one panel measures learns from it alone; one that none measures stays at zero."""
    halves = np.arange(0, GENES, 2), np.arange(1, GENES - 6, 2)
    controls = {(i, 0): cells_of(planted[150 * i : 150 * (i + 1)], half) for i, half in enumerate(halves)}
    learned = learn_agreement(mask, control_samples(mask, halves, controls, 0), 0)
    unmeasured = ~np.isin(mask.gene, np.concatenate(halves))
    assert unmeasured.sum() == 3
    assert (learned.logit[unmeasured] == 0).all()
    assert (learned.logit[~unmeasured] != 0).all()


def test_too_few_cells_teach_nothing(planted, mask):
    controls = {(0, 0): cells_of(planted[: MIN_CELLS - 1]), (2, 0): cells_of(planted[:0])}
    panels = [np.arange(GENES)] * 3
    assert control_samples(mask, panels, controls, 0) == []
    without = learn_agreement(mask, [], 0)
    assert without.logit is None
    layers = [
        type(pathway_layer(PathwayConfig(), EdgeTable(each, GENES))).__name__
        for each in (without, replace(mask, logit=np.zeros(GENES, np.float32)))
    ]
    assert layers == ["MemberMasking", "AgreementMasking"]


def test_cells_without_differences_and_pathways_without_halves_are_harmless(planted):
    """One gene in each pathway: no half has a pathway of the other, and the loss is a number."""
    ids = ["A", "B"]
    lone = Membership(ids, ids, np.arange(2), np.arange(2), GENES)
    same = cells_of(np.repeat(planted[:1], MIN_CELLS, 0))
    for mask in (lone,):
        samples = control_samples(mask, [np.arange(GENES)], {(0, 0): same}, 0)
        assert np.isfinite(learn_agreement(mask, samples, 0).logit).all()
