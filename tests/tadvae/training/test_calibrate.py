"""Ensembles trained in this process: mean of their members, and intervals calibrated on training groups."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from small_screens import SPLITS, small_config

from tadvae.base.errors import UserError
from tadvae.data.splits import TEST, TRAIN
from tadvae.evaluation import questions
from tadvae.evaluation.answers import answer
from tadvae.evaluation.evaluate import COVERAGE, METHOD, WIDTH, evaluate
from tadvae.model.ensemble import Ensemble
from tadvae.training.calibrate import calibrate, fit_ensemble, plan_calibration
from tadvae.training.fit import fit

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ensemble(small_folder, small_store):
    """Two members, calibrated, which tests only read."""
    config = small_config(small_folder, "split={kind: combo, folds: 4}", "preprocess.n_top_genes=20")
    return fit_ensemble(small_store, config, [0, 1], folds=2, seeds_per_fold=2)


def test_an_ensemble_is_the_mean_of_its_members_with_intervals(ensemble, small_store, small_folder):
    model, groups = ensemble
    assert isinstance(model, Ensemble)
    assert model.calibration.kind == "combo"
    tested = questions.held_out_groups(groups, small_store.control)
    scores = evaluate(small_store, groups, model)
    for question in questions.ask(small_store, groups, tested, model.vocabulary, model.config.split):
        whole = answer(small_store, model, question)
        parts = [answer(small_store, member, question) for member in model.members]
        means = np.stack([part.mean for part in parts])
        np.testing.assert_allclose(whole.mean, means.mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(whole.spread, means.std(axis=0, ddof=1), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(whole.cells, np.mean([part.cells for part in parts], axis=0), atol=1e-6)
        name = question.groups["dataset_name"].iloc[0]
        half = model.calibration.factor * (model.calibration.scale[name] + whole.spread)
        inside = (np.abs(question.observed - whole.mean) <= half).mean(axis=1)
        for i, p in enumerate(question.groups["perturbation_name"]):
            own = scores.table[
                (scores.table["dataset"] == name)
                & (scores.table["context"] == question.groups["context_name"].iloc[0])
                & (scores.table["perturbation"] == p)
                & (scores.table["method"] == METHOD)
            ].set_index("metric")["value"]
            assert own[COVERAGE] == pytest.approx(inside[i])
            assert own[WIDTH] == pytest.approx(2 * half[i].mean())
    assert any("calibrated on" in note for note in scores.notes)


def test_calibration_never_looks_at_the_held_out_groups(ensemble, small_store, small_folder, monkeypatch):
    model, groups = ensemble
    plan = plan_calibration(small_store, groups, model.config.split, 2)
    held = set(groups.loc[groups["part"] == TEST, "perturbation_name"])
    assert not held & {name for fold in plan.names for name in fold}
    assert sorted(name for fold in plan.names for name in fold) == sorted(
        {n for n in groups.loc[groups["part"] == TRAIN, "perturbation_name"] if "+" in n}
    )
    asked = []
    original = questions.ask

    def recording(small_store, split_groups, tested, *rest):
        asked.append(tested)
        return original(small_store, split_groups, tested, *rest)

    monkeypatch.setattr("tadvae.training.calibrate.ask", recording)
    models = []
    for split in plan.splits:
        assert held <= set(split.test)
        models.append([fit(small_store, model.config.model_copy(update={"split": split}))])
    calibrate(small_store, groups, model.vocabulary, plan, models)
    names = pd.concat(asked)["perturbation_name"]
    assert len(names)
    assert not held & set(names)
    for fold, part in zip(plan.names, asked, strict=True):
        assert set(part["perturbation_name"]) <= set(fold)


@pytest.mark.parametrize("kind", ["single", "context", "dataset", "none"])
def test_calibration_of_other_splits(kind, small_folder, small_store):
    settings = {"none": ["split.kind=none"]} | {name: given for name, (given, _) in SPLITS.items()}
    config = small_config(small_folder, *settings[kind])
    from tadvae.data.splits import split_groups

    groups = split_groups(small_store, config.split)
    plan = plan_calibration(small_store, groups, config.split, 2)
    assert plan.kind == ("single" if kind == "single" else "combo")
    held = groups.loc[groups["part"] == TEST, ["dataset", "context", "perturbation"]]
    for split in plan.splits:
        inner = split_groups(small_store, split)
        out = inner.loc[inner["part"] == TEST, ["dataset", "context", "perturbation"]]
        assert set(held.itertuples(index=False)) < set(out.itertuples(index=False))


def test_calibration_that_cannot_be(small_folder, small_store, refused):
    from tadvae.data.splits import split_groups

    cells = small_config(small_folder, "split.kind=cells").split
    assert "nothing to calibrate" in refused(
        plan_calibration, small_store, split_groups(small_store, cells), cells, 2
    )
    combo = small_config(small_folder, "split.kind=combo").split
    assert "--calibration-folds 99" in refused(
        plan_calibration, small_store, split_groups(small_store, combo), combo, 99
    )


def test_an_ensemble_predicts_with_intervals_or_says_why_not(ensemble, small_folder):
    model, _ = ensemble
    names = [t.name for t in model.vocabulary.targets if t.seen]
    found = model.predict(f"{names[0]}+{names[1]}", context="L1", dataset="up")
    parts = [m.predict(f"{names[0]}+{names[1]}", context="L1", dataset="up") for m in model.members]
    np.testing.assert_allclose(found.X, np.mean([part.X for part in parts], axis=0), atol=1e-6)
    np.testing.assert_allclose(
        found.layers["seed_spread"], np.std([part.X for part in parts], axis=0, ddof=1), atol=1e-6
    )
    means = np.array([part.var["predicted_mean"] for part in parts], dtype=np.float64)
    low, high = found.varm["interval"].T
    profile = model.vocabulary.contexts[model.vocabulary.context("L1", "up")].profile
    centre = means.mean(axis=0) - parts[0].var["control_mean"] + profile
    half = model.calibration.factor * (model.calibration.scale["up"] + means.std(axis=0, ddof=1))
    np.testing.assert_allclose(low, centre - half, atol=1e-5)
    np.testing.assert_allclose(high, centre + half, atol=1e-5)
    assert found.uns["tadvae"]["interval_level"] == 0.9
    with pytest.raises(UserError, match="target 'NOPE': no prediction"):
        model.predict("NOPE", context="L1", dataset="up")
    with pytest.raises(UserError, match="context 'Mars' was not in training"):
        model.predict(names[0], context="Mars")
    controls = ad.read_h5ad(small_folder / "up.h5ad")
    controls = controls[controls.obs["condition"] == "control"][:12].copy()
    new = model.predict(names[0], context="Mars", dataset="up", controls=controls)
    assert np.isnan(new.varm["interval"]).all()
    assert new.uns["tadvae"]["no_interval"] == "context 'Mars' was not in training"
    plain = Ensemble(model.members).predict(names[0], context="L1", dataset="up")
    assert plain.uns["tadvae"]["no_interval"] == "this ensemble was not calibrated"


def test_the_graph_of_an_ensemble_names_how_stable_its_edges_are(ensemble):
    model, _ = ensemble
    frame = model.graph(threshold=0.0)
    assert (frame["share"] == 1.0).all()
    names = model.members[0].factors(top=1)["name"]
    assert frame["source_name"].tolist() == [names[k] for k in frame["source"]]
    alone = Ensemble(model.members[:1]).graph(threshold=0.01)
    expected = model.members[0].graph()
    for row in alone.itertuples():
        assert row.effect == pytest.approx(expected[row.source, row.target])
        assert row.share == 1.0


def test_members_of_no_ensemble():
    with pytest.raises(ValueError, match="member"):
        Ensemble([])
