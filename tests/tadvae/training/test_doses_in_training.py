"""Screens with doses from the simulation to predictions at doses that were not tested."""

import logging

import numpy as np
import pytest
from local_conversion import convert_locally
from small_screens import small_config

from pipelines.evaluate import evaluate_run
from pipelines.report import report_run
from pipelines.train.train import train
from tadvae.base.filesystem import Location
from tadvae.data.build_vocabulary import interventions
from tadvae.data.splits import TEST, SplitConfig, split_groups
from tadvae.model.ensemble import Ensemble
from tadvae.model.tadvae import TADVAE
from tadvae.settings.experiment import ExperimentConfig
from tadvae.simulation.config import ScreenConfig, SimulationConfig
from tadvae.simulation.files import write_simulation
from tadvae.simulation.simulate import dose_response, simulate
from tadvae.store.reader import Store
from tadvae.training.fit import fit
from tadvae.training.prepare import prepare_training
from tadvae.training.pretrained import Pretrained
from tune.cli import main

pytestmark = pytest.mark.usefixtures("one_thread")
DOSES = (0.01, 0.1, 1.0, 10.0)
CONFIG = SimulationConfig(
    seed=1,
    n_genes=60,
    n_factors=3,
    n_pathways=6,
    genes_per_pathway=(6, 10),
    n_targets=6,
    truth_cells=5,
    screens=(
        ScreenConfig(
            name="drugs",
            n_genes=50,
            n_singles=6,
            n_doubles=1,
            control_cells=40,
            cells_per_condition=8,
            doses=DOSES,
        ),
    ),
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("doses")
    write_simulation(simulate(CONFIG), place / "screens")
    convert_locally(place / "screens/spec.yaml", Location.of(place / "store"))
    return place


@pytest.fixture(scope="module")
def run(place):
    """A run that holds one dose out."""
    config = small_config(
        place / "screens", "split={kind: dose, folds: 4}", "train={epochs: 2, trackers: []}"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        return train(str(place / "store"), str(place / "run"), config)


@pytest.fixture(scope="module")
def model(run):
    return TADVAE.from_pretrained(run.place)


@pytest.fixture(scope="module")
def store(place):
    return Store.open(str(place / "store"))


def test_the_simulation_follows_hill_curves():
    share = dose_response(CONFIG, np.array([np.nan, *DOSES]))
    assert (share[0] == 1).all()
    assert (np.diff(share[1:], axis=0) > 0).all()
    assert ((share[1:] > 0) & (share[1:] < 1)).all()
    truth = simulate(CONFIG).truth.screens[0]
    assert truth.conditions[:2] == ["control", f"{truth.conditions[1].split('@')[0]}@0.01uM"]
    shift = np.linalg.norm(truth.mean_u[0] - truth.mean_u[0, 0], axis=-1)  # (S,)
    assert (np.diff(shift[1:25].reshape(6, 4), axis=1) > 0).all()


def test_one_dose_is_held_out(store):
    groups = split_groups(store, SplitConfig(kind="dose", folds=4, fold=1))
    held = groups[groups["part"] == TEST]
    doses = store.perturbations["dose"].to_numpy()[held["perturbation"]]
    assert len(set(doses)) == 1
    assert len(held) == 7
    assert set(held["category"]) == {"unseen_dose"}
    every = {
        store.perturbations["dose"].iloc[p]
        for fold in range(4)
        for p in split_groups(store, SplitConfig(kind="dose", folds=4, fold=fold)).query("part == 'test'")[
            "perturbation"
        ]
    }
    assert every == set(DOSES)
    name = store.perturbations["name"].iloc[3]
    groups = split_groups(store, SplitConfig(kind="explicit", test=[name]))
    assert groups.loc[groups["part"] == TEST, "perturbation_name"].tolist() == [name]


def test_a_store_without_doses_has_none_to_hold_out(screens_apart, refused):
    up = Store.open(str(screens_apart / "up"))
    assert "has no doses" in refused(lambda: split_groups(up, SplitConfig(kind="dose")))


def test_the_vocabulary_knows_the_doses_of_training(model, store, run):
    amounts = model.vocabulary.amounts
    assert amounts.units == {"dose": "uM"}
    split = run.split()
    train = split[(split["part"] != TEST) & (split["perturbation_name"] != "control")]
    logs = np.log(store.perturbations["dose"].to_numpy()[train["perturbation"]])
    np.testing.assert_allclose([amounts.centre[0], amounts.scale[0]], [logs.mean(), logs.std()])
    assert amounts.centre[1:] + amounts.scale[1:] == [0.0, 1.0]
    pairs = interventions(store, model.vocabulary)
    p = int(train["perturbation"].iloc[0])
    assert pairs[p][0][2] == np.log(store.perturbations["dose"].iloc[p])
    assert np.isnan(pairs[p][0][3])


def test_predictions_grow_with_the_dose_and_say_where_nothing_was_tested(model, caplog):
    target = model.vocabulary.targets[0].name
    seen = sorted(np.exp(d) for d, _ in model.vocabulary.amounts.seen[0][0])

    def size(dose=None):
        found = model.predict(target, context="SIMLINE1", dose=dose)
        assert dose is None or np.isclose(found.uns["tadvae"]["dose"], dose)
        return np.linalg.norm(found.var["predicted_mean"] - found.var["control_mean"])

    with caplog.at_level(logging.WARNING, "tadvae"):
        sizes = [size(dose) for dose in (seen[0], 0.3 * seen[-1], seen[-1])]
        assert not caplog.records
        assert sizes[0] < sizes[-1]
        assert size() == sizes[-1]
        size(100 * seen[-1])
    assert f"dose of {100 * seen[-1]:g}uM for '{target}' is beyond those of training" in caplog.text
    many = model.predict_many([target], context="SIMLINE1", dose=seen[0])
    assert np.isclose(np.linalg.norm(many.X[1] - many.X[0]), sizes[0], rtol=1e-3)
    assert many.uns["tadvae"]["dose"] == seen[0]
    both = Ensemble([model, model]).predict(target, context="SIMLINE1", dose=seen[0])
    assert np.isclose(np.linalg.norm(both.var["predicted_mean"] - both.var["control_mean"]), sizes[0])


def test_what_is_no_dose_is_refused(model, screens_apart, refused):
    target = model.vocabulary.targets[0].name
    assert "expected a number above 0, in uM" in refused(
        lambda: model.predict(target, context="SIMLINE1", dose=0.0)
    )
    assert "trained without a time" in refused(lambda: model.predict(target, context="SIMLINE1", time=3.0))
    plain = TADVAE.from_pretrained(screens_apart / "up-model")
    name = plain.vocabulary.targets[0].name
    assert "trained without a dose" in refused(lambda: plain.predict(name, context="L1", dose=1.0))
    assert "trained without a dose" in refused(lambda: plain.predict_many([name], context="L1", dose=1.0))


def test_the_command_takes_a_dose(run, model, tmp_path, capsys):
    target = model.vocabulary.targets[0].name
    out = tmp_path / "predicted.h5ad"
    words = [
        "predict",
        str(run),
        "--target",
        target,
        "--context",
        "SIMLINE1",
        "--dose",
        "0.3",
        "--out",
        str(out),
    ]
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert not ended.value.code
    assert out.exists()


def test_a_held_out_dose_is_evaluated_and_reported(run, tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    scores = evaluate_run(str(run))
    assert set(scores.table["category"]) == {"unseen_dose"}
    assert not scores.abstained
    l2 = scores.table[scores.table["metric"] == "l2"].groupby("method")["value"].mean()
    assert l2["dose_interpolation"] < l2["mean"]  # it knows the drug
    report_run(str(run), str(tmp_path / "page.html"))


def test_the_curves_are_learned_and_saved(model, run):
    curves = model.module.causal.curves
    assert curves.shared.abs().max() > 0
    assert curves.own[0].abs().max() > 0
    assert not curves.own[1].any()  # no time
    assert "curves" in run.steps()[0]


def test_a_model_without_doses_learns_them_by_fine_tuning(place, screens_apart):
    base = Pretrained.load(str(screens_apart / "up-model")).settings()
    config = ExperimentConfig.load(None, ["train.epochs=1", "split.kind=none"], base)
    model, _ = fit(Store.open(str(place / "store")), config)
    amounts = model.vocabulary.amounts
    assert amounts.seen[0] == {}
    assert len(amounts.seen[1]) == 6
    assert model.module.causal.curves.shared.abs().max() > 0


def test_a_model_with_doses_keeps_what_its_weights_mean(screens_apart, model, run):
    base = Pretrained.load(str(run)).settings()
    config = ExperimentConfig.load(None, ["split.kind=none"], base)
    prepared = prepare_training(Store.open(str(screens_apart / "down")), config)
    before, after = model.vocabulary.amounts, prepared.vocabulary.amounts
    assert (after.centre, after.scale, after.units) == (before.centre, before.scale, before.units)
    assert after.seen == [before.seen[0], {}]
    observed = prepared.effects.observed.conditions
    n = len(model.effects.observed.conditions)
    assert observed.has_amounts.tolist() == [True] * n + [False] * (len(observed) - n)


def test_another_unit_is_refused(place, run, refused):
    spec = (place / "screens/spec.yaml").read_text().replace("uM", "nM").replace('"drugs"', '"other"', 1)
    (place / "screens/other.yaml").write_text(spec)
    other = convert_locally(place / "screens/other.yaml", Location.of(place / "other"))
    former = Pretrained.load(str(run))
    assert "gives 'dose' in 'nM', but" in refused(lambda: former.require_fits(other))
