"""Permuted pathways keep everything that is counted, and change which genes are in a pathway."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_screens import SCREENS, small_config

from tadvae.base.errors import UserError
from tadvae.data.vocabulary import Vocabulary
from tadvae.model.card import model_card
from tadvae.pathways.membership import Membership
from tadvae.pathways.permuted import permuted_genes
from tadvae.settings.experiment import ExperimentConfig
from tadvae.simulation.files import write_simulation
from tadvae.simulation.simulate import simulate
from tadvae.training.prepare import prepare_training


@st.composite
def cases(draw):
    """A membership over some panels, and a seed."""
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    n_genes, n_pathways = draw(st.integers(3, 30)), draw(st.integers(1, 6))
    pathway, gene = np.nonzero(rng.random((n_pathways, n_genes)) < 0.4)
    ids = [f"P{p}" for p in range(n_pathways)]
    panels = [np.flatnonzero(rng.random(n_genes) < 0.6) for _ in range(draw(st.integers(1, 3)))]
    return Membership(ids, ids, pathway, gene, n_genes), panels, draw(st.integers(0, 5))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(cases())
def test_sizes_overlaps_and_availability_stay(case):
    membership, panels, seed = case
    found = permuted_genes(membership, panels, seed)
    before, after = membership.dense().astype(int), found.dense().astype(int)
    np.testing.assert_array_equal(before @ before.T, after @ after.T)
    for panel in panels:  # in every dataset alone, and in what two measure
        np.testing.assert_array_equal(
            before[:, panel] @ before[:, panel].T, after[:, panel] @ after[:, panel].T
        )
    nowhere = np.setdiff1d(np.arange(membership.n_genes), np.concatenate(panels))
    np.testing.assert_array_equal(before[:, nowhere], after[:, nowhere])
    np.testing.assert_array_equal(permuted_genes(membership, panels, seed).gene, found.gene)
    assert found.permuted == seed


def test_a_permutation_of_many_genes_leaves_chance_overlap():
    """Of 40 pathways of 20 among 2,000 genes, a permuted one shares 20·20/2000 = 0.2 genes with itself."""
    rng = np.random.default_rng(0)
    gene = np.concatenate([np.sort(rng.choice(2000, 20, replace=False)) for _ in range(40)])
    ids = [f"P{p}" for p in range(40)]
    membership = Membership(ids, ids, np.repeat(np.arange(40), 20), gene, 2000)
    shared = [
        (membership.dense() & permuted_genes(membership, [np.arange(2000)], seed).dense()).sum() / 40
        for seed in range(10)
    ]
    assert np.mean(shared) == pytest.approx(0.2, abs=0.1)
    assert len(set(shared)) > 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("screens")
    write_simulation(simulate(SCREENS), place)
    return place


def test_one_setting_makes_the_control_and_everyone_is_told(folder, convert_here, tmp_path):
    store = convert_here(folder / "spec.yaml")
    config = small_config(folder, "pathways.permuted=7", "effects.weight=0")
    prepared = prepare_training(store, config)
    plain = prepare_training(store, small_config(folder, "effects.weight=0"))
    found, before = prepared.vocabulary, plain.vocabulary
    np.testing.assert_array_equal(found.available, before.available)
    assert not np.array_equal(found.membership.gene, before.membership.gene)
    found.save(place := tmp_location(tmp_path))
    assert Vocabulary.load(place).membership.permuted == 7
    card = model_card(found, config)
    assert "**PERMUTED PATHWAYS (seed 7)" in card
    assert "PERMUTED" not in model_card(before, plain_config := small_config(folder))
    assert "PERMUTED pathways (seed 7)" in config.summary
    assert "PERMUTED" not in plain_config.summary


def tmp_location(path):
    from tadvae.base.filesystem import Location

    (path / "model").mkdir()
    return Location.of(path / "model")


def test_units_have_no_pathways_to_permute():
    with pytest.raises(UserError, match="no pathways to permute"):
        ExperimentConfig.load(None, ["pathways.units=4", "pathways.permuted=0"])
