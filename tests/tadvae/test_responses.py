"""Responses of pathways to perturbed genes, from a store: against the model asked cell by cell."""

import anndata as ad
import numpy as np
import pytest
from small_screens import SCREENS, small_config

from tadvae.evaluation.interpretation import activation_ratio, hits_at
from tadvae.responses import pathway_responses, without_gene
from tadvae.simulate import simulate
from tadvae.simulation_files import write_simulation
from tadvae.training import fit


@pytest.fixture
def run(tmp_path, convert_here):
    write_simulation(simulate(SCREENS), tmp_path / "screens")
    store = convert_here(tmp_path / "screens" / "spec.yaml")
    model, _ = fit(store, small_config(tmp_path / "screens"))
    return tmp_path / "screens", store, model


def test_responses_are_those_of_the_source_cells(run):
    folder, store, model = run
    table = pathway_responses(store, model)
    assert set(table["target_gene"]) == {"kept", "removed"}
    membership = model.vocabulary.membership
    source = ad.read_h5ad(folder / "up.h5ad")
    genes = model.vocabulary.genes["gene"].tolist()
    checked = 0
    for row in table[table["dataset"] == "up"].to_dict("records"):
        cells = source[source.obs["cell_type"] == row["context"]]
        # library size is of all genes, so the target is taken out after normalisation
        values = cells.X.toarray().astype(np.float64)
        values = np.log1p(values * (1e4 / values.sum(axis=1, keepdims=True)))
        logged = ad.AnnData(values.astype(np.float32), obs=cells.obs, var=cells.var)
        if row["target_gene"] == "removed":
            logged = logged[:, logged.var_names != row["perturbation"]].copy()
        activity = model.activities(logged, values="log1p").to_numpy()
        condition = logged.obs["condition"].to_numpy()
        change = activity[condition == row["perturbation"]].mean(axis=0) - activity[
            condition == "control"
        ].mean(axis=0)
        member = np.zeros(len(change), bool)
        member[membership.pathway[membership.gene == genes.index(row["perturbation"])]] = True
        np.testing.assert_allclose(row["dar"], activation_ratio(change, member), rtol=1e-3)
        assert row["hits@25"] == pytest.approx(hits_at(change, member, 25), nan_ok=True)
        checked += 1
    assert checked >= 4


def test_a_gene_taken_out_of_cells(run):
    *_, model = run
    cells = model.controls[0]
    gene = int(cells.gene_ids[len(cells.gene_ids) // 2])
    genes = model.vocabulary.datasets[0].genes
    expected = cells.dense(genes)
    expected[:, np.searchsorted(genes, gene)] = 0.0
    without = without_gene(cells, gene)
    assert gene not in without.gene_ids
    assert len(without) == len(cells)
    np.testing.assert_array_equal(without.dense(genes), expected)
