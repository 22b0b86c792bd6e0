"""The quality control of simulated screens with a known truth: escaped cells, guides, batches, controls."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from local_conversion import convert_locally
from sklearn.metrics import roc_auc_score

from tadvae.base.filesystem import Location
from tadvae.report.screen_qc_page import answer, findings, screen_qc_page
from tadvae.screen_qc.check import check_screens
from tadvae.screen_qc.thresholds import QcConfig
from tadvae.simulation.config import SimulationConfig
from tadvae.simulation.files import write_simulation
from tadvae.simulation.simulate import simulate

UP, DOWN = SimulationConfig().screens
SIMULATION = SimulationConfig(  # the screens of the demo
    truth_cells=1,
    screens=(
        UP.model_copy(update={"name": "up", "escaped": 0.3}),
        DOWN.model_copy(update={"name": "down", "escaped": 0.3, "n_batches": 1}),
    ),
)


@pytest.fixture(scope="module")
def escaped(tmp_path_factory):
    """Simulated screens with escaped cells, as a store, and their folder."""
    folder = tmp_path_factory.mktemp("escaped")
    simulation = simulate(SIMULATION)
    spec = write_simulation(simulation, folder / "screens")
    return simulation, convert_locally(spec, Location.of(folder / "store")), folder


@pytest.fixture(scope="module")
def found(escaped):
    return check_screens(escaped[1], QcConfig())


def in_file_order(escaped, stored_cells, found, dataset):
    """Whether cells escaped, and their probabilities, in the order of the store."""
    simulation, store, _ = escaped
    truth = pd.Series(simulation.truth.screens[dataset].escaped, simulation.screens[dataset].obs_names)
    labels, _ = stored_cells(store, dataset)
    return truth.loc[labels["cell_id"]].to_numpy(), found.probability[dataset], labels


@pytest.mark.parametrize("dataset", [0, 1])
def test_escaped_cells_are_found(escaped, stored_cells, found, dataset):
    truth, probability, labels = in_file_order(escaped, stored_cells, found, dataset)
    known = np.isfinite(probability)
    assert known.sum() == (labels["perturbation"] != "control").sum()
    assert roc_auc_score(~truth[known], probability[known]) >= 0.9
    assert 1 - probability[known].mean() == pytest.approx(truth[known].mean(), abs=0.08)
    assert truth[known].mean() == pytest.approx(0.3, abs=0.06)


def test_what_is_reported(found):
    table = found.perturbations
    assert len(table) == 28 + 2 * 14
    assert (table["cells"] == 75).all()
    assert table["escaped"].mean() == pytest.approx(0.3, abs=0.1)
    assert set(table["batches"][table["dataset"] == "up"]) == {2}
    assert (table["without_control"] == 0).all()
    assert table["guides"].isna().all()
    targets = found.targets
    assert len(targets) == 12 + 2 * 16 + 2 * (8 + 2 * 6)
    assert set(targets["verdict"][targets["dataset"] == "up"]) == {"higher, as expected"}
    assert set(targets["verdict"][targets["dataset"] == "down"]) <= {"lower, as expected", "no change found"}
    assert (targets["low"] < targets["log2_fold_change"]).all()
    assert (targets["q"] >= targets["p"]).all()
    assert found.contexts["control_cells"].tolist() == [300, 300, 300]
    up = found.datasets.set_index("dataset").loc["up"]
    assert up["batches"] == 2
    assert up["cramers_v"] < 0.15
    assert np.isnan(found.datasets.set_index("dataset").loc["down", "cramers_v"])


def test_memory_does_not_change_the_result(escaped, found):
    one_by_one = check_screens(escaped[1], QcConfig(cells_at_once=1))
    pd.testing.assert_frame_equal(one_by_one.perturbations, found.perturbations)
    pd.testing.assert_frame_equal(one_by_one.targets, found.targets)
    for dataset, values in found.probability.items():
        np.testing.assert_array_equal(one_by_one.probability[dataset], values)


def test_the_page_opens_with_the_answer(found):
    page = screen_qc_page(found, QcConfig(), "<store>")
    words = answer(found)
    assert "56 perturbations in 3 contexts; " in words
    assert "of 84 measured targets change as expected" in words
    assert page.index(words.split(";")[0]) < page.index("<section>")
    assert "&lt;store&gt;" in page
    assert "<store>" not in page
    assert page.count("<svg") == 2
    assert 'name="viewport"' in page


def converted(folder, name, change, qc):
    """One screen of the simulation, changed, as a store."""
    adata = ad.read_h5ad(folder / "screens" / "up.h5ad")
    change(adata)
    adata.write_h5ad(folder / f"{name}.h5ad")
    (folder / f"{name}.yaml").write_text(
        f"datasets: [{{name: up, path: {name}.h5ad, modality: CRISPRa, perturbation: {{column: condition, "
        f'control: control, separator: "+"}}, context: {{column: cell_type}}, batch: batch, qc: {qc}}}]\n'
        "genes: {reference: none}\n"
    )
    return convert_locally(folder / f"{name}.yaml", Location.of(folder / name))


def test_guides_batches_and_missing_controls(escaped):
    def change(adata):
        control = adata.obs["condition"] == "control"
        line = np.where(np.arange(adata.n_obs) % 2 | control, "L1", "alone")
        adata.obs["cell_type"] = line
        adata.obs["guide"] = adata.obs["condition"].astype(str) + np.where(
            np.arange(adata.n_obs) % 3, "_1", "_2"
        )
        adata.obs["n_guides"] = 1 + (np.arange(adata.n_obs) % 10 == 0)
        adata.obs["batch"] = np.where(
            adata.obs["condition"] == adata.obs["condition"].unique()[1], "b2", "b1"
        )

    store = converted(escaped[2], "odd", change, "{guide: guide, n_guides: n_guides}")
    store.verify_tables()
    qc = check_screens(store, QcConfig(min_cells=10))
    assert qc.contexts.set_index("context").loc["alone", "control_cells"] == 0
    assert qc.perturbations.loc[qc.perturbations["context"] == "alone", "escaped"].isna().all()
    assert set(qc.perturbations["guides"]) == {2}
    assert qc.perturbations["one_guide_share"].between(0.5, 0.85).all()
    assert qc.datasets["several_guides"].item() == pytest.approx(0.1, abs=0.01)
    assert qc.datasets["cramers_v"].item() > 0.9
    words = " ".join(findings(qc, QcConfig()))
    assert "Context alone of up has no control cells." in words
    assert "in one batch only" in words
    assert "several guides" in words
    assert "Cramér's V" in words


def test_nothing_perturbed(screen, write_spec, convert_here):
    screen.obs["condition"] = "control"
    qc = check_screens(convert_here(write_spec(screen)), QcConfig())
    assert answer(qc) == "The store has no perturbed single cells to check."
    assert qc.perturbations.empty
    assert "<h2>" in screen_qc_page(qc, QcConfig(), "store")
