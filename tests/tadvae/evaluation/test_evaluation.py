"""Every kind of split trains and evaluates end to end, without Ray; nothing held out reaches training."""

import copy
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from local_conversion import convert_locally
from scipy import sparse
from small_screens import SCREENS, small_config

from tadvae.base.errors import UserError
from tadvae.base.filesystem import Location
from tadvae.data.reader import CellReader
from tadvae.data.splits import TEST, TRAIN, held_out_rows
from tadvae.data.views import views_of
from tadvae.data.vocabulary import Vocabulary
from tadvae.evaluation import questions
from tadvae.evaluation.answers import answer
from tadvae.evaluation.baselines import fit_all
from tadvae.evaluation.ceiling import split_half_ceiling
from tadvae.evaluation.distances import energy_distance, median_bandwidths, mmd_unbiased
from tadvae.evaluation.evaluate import CEILING, COVERAGE, METHOD, NULL, WIDTH, evaluate
from tadvae.evaluation.leaks import check_leaks
from tadvae.evaluation.metrics import METRICS, pearson_delta, responsive_genes
from tadvae.model.ensemble import Ensemble
from tadvae.simulation.files import write_simulation
from tadvae.simulation.simulate import simulate
from tadvae.training.calibrate import calibrate, fit_ensemble, plan_calibration
from tadvae.training.fit import fit

pytestmark = pytest.mark.slow

SPLITS = {
    "combo": (["split.kind=combo"], {"combo_seen2"}),
    "single": (
        ["split={kind: single, folds: 4}", "effects.pathways=false"],
        {"unseen_single", "combo_seen1", "combo_seen0"},
    ),
    "context": (["split={kind: context, folds: 2, fold: 1, datasets: [up]}"], {"unseen_context"}),
    "dataset": (["split={kind: dataset, folds: 2}"], {"unseen_dataset"}),
    "cells": (["split.kind=cells"], {"cells"}),
    "explicit": (["split={kind: explicit, test: [L2]}"], {"unseen_context"}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("small") / "screens"
    write_simulation(simulate(SCREENS), folder)
    return folder


@pytest.fixture(scope="module")
def store(folder):
    return convert_locally(folder / "spec.yaml", Location.of(folder.parent / "store"))


@pytest.mark.parametrize("kind", SPLITS)
def test_every_split_trains_and_evaluates(kind, folder, store):
    settings, categories = SPLITS[kind]
    model, groups = fit(store, small_config(folder, *settings))
    scores = evaluate(store, groups, model)
    assert set(scores.table["category"]) <= categories
    assert set(scores.table["category"]) & categories
    methods = {
        "no_change",
        "mean",
        "matching_mean",
        "additive",
        "additive_ridge",
        "linear",
        "latent_additive",
    }
    methods |= {"scgen"} if kind in ("context", "explicit") else set()
    methods |= {"context_ridge"} if kind in ("combo", "single", "cells") else set()
    found = set(scores.table["method"])
    assert found == methods | {METHOD, CEILING, NULL}
    wide = scores.table[~scores.table["method"].isin([CEILING, NULL])]
    wanted = {*METRICS, "mmd", "energy_distance"}
    for _, part in wide.groupby(["dataset", "context", "perturbation", "method"]):
        assert wanted <= set(part["metric"])
    if kind == "cells":  # a group may have a single held-out cell, which has no distance
        wanted = set(METRICS)
    assert np.isfinite(wide.loc[wide["metric"].isin(wanted), "value"]).all()
    profile = wide[wide["metric"].isin([*METRICS])]
    assert not (profile["low"] > profile["high"]).any()
    assert profile["low"].notna().mean() > (0.7 if kind == "cells" else 0.99)
    if kind in ("single", "context", "dataset", "explicit"):
        assert scores.abstained
    reason = {"single": "was not perturbed", "cells": None, "combo": None}.get(kind, "context was never seen")
    assert all(reason in text for text in scores.abstained.values()) if reason else not scores.abstained


def test_scores_are_the_metrics_of_the_cells(folder, store):
    """The table again from the cells that the store holds, metric by metric."""
    config = small_config(folder, "split={kind: combo, folds: 3}")
    model, groups = fit(store, config)
    table = evaluate(store, groups, model).table
    tested = groups[groups["part"] == TEST]
    train = CellReader(store, views_of(store, model.vocabulary), config.split)
    row = tested.iloc[1]
    place = (int(row["dataset"]), int(row["context"]))
    genes = model.vocabulary.datasets[place[0]].genes

    def cells_of(perturbation):
        at = store.bags[
            (store.bags["dataset"] == place[0])
            & (store.bags["context"] == place[1])
            & (store.bags["perturbation"] == perturbation)
        ]
        return np.concatenate([train.read(*read)[1].dense(genes) for read in store.row_groups(at)])

    observed, control = cells_of(row["perturbation"]).astype(np.float64), cells_of(store.control)
    here = groups[(groups["dataset"] == place[0]) & (groups["context"] == place[1])]
    seen = here[(here["part"] == TRAIN) & (here["perturbation"] != store.control)]
    effects = {
        name: cells_of(p).mean(axis=0, dtype=np.float64) - control.mean(axis=0, dtype=np.float64)
        for name, p in zip(seen["perturbation_name"], seen["perturbation"], strict=True)
    }
    a, b = row["perturbation_name"].split("+")
    base = control.mean(axis=0, dtype=np.float64)
    predicted = base + effects[a] + effects[b]
    found = table[
        (table["dataset"] == row["dataset_name"])
        & (table["context"] == row["context_name"])
        & (table["perturbation"] == row["perturbation_name"])
    ]
    additive = found[found["method"] == "additive"].set_index("metric")["value"]
    for name, metric in METRICS.items():
        assert additive[name] == pytest.approx(metric(predicted, observed.mean(axis=0), base), abs=1e-6), name
    chosen = responsive_genes(np.array(list(effects.values())))
    expected = pearson_delta(predicted[chosen], observed.mean(axis=0)[chosen], base[chosen])
    assert additive["pearson_delta_de"] == pytest.approx(expected, abs=1e-6)
    ladder = median_bandwidths(observed)
    moved = control + (predicted - base)
    assert additive["mmd"] == pytest.approx(mmd_unbiased(moved, observed, ladder), abs=1e-5)
    assert additive["energy_distance"] == pytest.approx(energy_distance(moved, observed), abs=1e-5)
    at = list(tested[(tested["dataset"] == place[0]) & (tested["context"] == place[1])].index).index(row.name)
    ceiling = split_half_ceiling(observed, base, ladder, seed=at)
    for method, values in ((CEILING, ceiling.metrics), (NULL, ceiling.null)):
        shown = found[found["method"] == method].set_index("metric")["value"]
        assert shown.to_dict() == pytest.approx(values, abs=1e-5)


# ---------------------------------------------------------------- leaks


def spoiled(folder: Path, out: Path, cells: dict[str, set[str]]) -> Path:
    """The screens with garbage in the given cells: other counts in every gene, the panels as they were."""
    rng = np.random.default_rng(0)
    out.mkdir()
    for name, ids in cells.items():
        adata = ad.read_h5ad(folder / f"{name}.h5ad")
        X = adata.X.toarray()
        rows = adata.obs_names.isin(ids)
        assert rows.sum() == len(ids)
        X[rows] = rng.poisson(rng.gamma(0.3, 30.0, X.shape[1]), (rows.sum(), X.shape[1])) + 1
        adata.X = sparse.csr_matrix(X)
        adata.write_h5ad(out / f"{name}.h5ad")
    for name in ("spec.yaml", "pathways.gmt"):
        (out / name).write_bytes((folder / name).read_bytes())
    return out


def held_out_cells(store, groups, config, stored_cells) -> dict[str, set[str]]:
    """Names of the held-out cells by dataset, from the shards themselves."""
    result = {}
    test = groups[groups["part"] == TEST]
    for d, entry in enumerate(store.manifest.datasets):
        labels, _ = stored_cells(store, d)
        if config.split.kind == "cells":
            held, start = np.zeros(len(labels), bool), 0
            bags = store.bags[store.bags["dataset"] == d]
            for (shard, row_group), part in bags.groupby(["shard", "row_group"], sort=True):
                n = int(part["n_cells"].sum())
                held[start : start + n] = held_out_rows(n, shard, row_group, config.split)
                start += n
        else:
            keys = test.loc[test["dataset"] == d, ["context_name", "perturbation_name"]]
            wanted = set(keys.itertuples(index=False, name=None))
            held = np.array(
                [key in wanted for key in zip(labels["context"], labels["perturbation"], strict=True)]
            )
        result[entry.name] = set(labels["cell_id"][held])
    return result


def learned(store, config) -> dict[str, np.ndarray]:
    """Everything that is derived from training rows, as arrays."""
    model, groups = fit(store, config)
    tested = questions.held_out_groups(groups, store.control)
    found = {f"weights.{k}": v.numpy() for k, v in model.module.state_dict().items()}
    vocabulary: Vocabulary = model.vocabulary
    for i, dataset in enumerate(vocabulary.datasets):
        found[f"genes.{i}"] = dataset.genes
    for i, context in enumerate(vocabulary.contexts):
        found[f"profile.{i}"] = context.profile
    found["seen"] = np.array([t.seen for t in vocabulary.targets])
    for i, dataset in enumerate(vocabulary.datasets):  # what the regression of mean effects has learned
        pairs = [[(t, dataset.modality)] for t in range(len(vocabulary.targets))]
        found[f"effects.{i}"] = model.effects.predict(i, -1, [*pairs, pairs[0] + pairs[1]], dataset.genes)
    if "dataset" in config.split.kind or "context" in config.split.kind or config.split.test:
        return found  # baselines start from the controls of the held-out context
    for question in questions.ask(store, groups, tested, vocabulary, config.split):
        where = f"{question.place}"
        found[f"control.{where}"] = question.control
        found[f"responsive.{where}"] = responsive_genes(question.profiles.means - question.control)
        for name, baseline in fit_all(question.profiles).items():
            found[f"{name}.{where}"] = baseline.predict(question.targets)
        found[f"model.{where}"] = answer(store, model, question).mean
    return found


@pytest.mark.parametrize("kind", SPLITS)
def test_garbage_in_held_out_rows_changes_nothing_that_was_learned(
    kind, folder, store, convert_here, stored_cells, tmp_path
):
    settings, _ = SPLITS[kind]
    config = small_config(folder, *settings, "preprocess.n_top_genes=20")
    before = learned(store, config)
    groups = fit(store, config.model_copy(update={"train": config.train.model_copy(update={"epochs": 1})}))[1]
    cells = held_out_cells(store, groups, config, stored_cells)
    assert sum(map(len, cells.values())) > 20
    other = convert_here(spoiled(folder, tmp_path / "spoiled", cells) / "spec.yaml", "other")
    # the garbage is there, and would have changed the genes
    for d, ids in enumerate(cells.values()):
        assert not ids or (other.panel(d)["hvg_rank"] != store.panel(d)["hvg_rank"]).any()
    after = learned(other, config)
    assert before.keys() == after.keys()
    for name, values in before.items():
        np.testing.assert_array_equal(values, after[name], err_msg=name)


@pytest.fixture(scope="module")
def small_run(folder, store):
    """A model and its split, which tests only read."""
    config = small_config(folder, "split={kind: combo, folds: 3}", "preprocess.n_top_genes=20")
    return fit(store, config)


def test_an_unchanged_run_passes_the_leak_check(small_run, store):
    model, groups = small_run
    check_leaks(store, groups, model)


def test_planted_leaks_are_refused(small_run, store, refused):
    model, groups = copy.deepcopy(small_run)
    vocabulary = model.vocabulary

    # a held-out double that was trained on: the saved split says so, the config does not
    at = groups.index[groups["part"] == TEST][0]
    moved = groups.copy()
    moved.loc[at, "part"] = TRAIN
    sentence = refused(evaluate, store, moved, model)
    assert "leak check" in sentence
    assert groups.loc[at, "perturbation_name"] in sentence

    # variable genes of all cells instead of the training cells
    panel = store.panel(0)
    genes = np.sort(
        panel.sort_values("hvg_rank")["gene_index"].to_numpy()[: len(vocabulary.datasets[0].genes)]
    )
    assert not np.array_equal(genes, vocabulary.datasets[0].genes)
    own = vocabulary.datasets[0].genes
    object.__setattr__(vocabulary.datasets[0], "genes", genes)
    assert "variable genes of dataset 'up'" in refused(check_leaks, store, groups, model)
    object.__setattr__(vocabulary.datasets[0], "genes", own)

    # a control profile that is not of training controls
    context = vocabulary.contexts[0]
    profile = context.profile
    object.__setattr__(context, "profile", profile + np.float32(1e-3))
    assert f"control profile of context '{context.name}'" in refused(check_leaks, store, groups, model)
    object.__setattr__(context, "profile", profile)
    check_leaks(store, groups, model)

    # a target that counts as seen
    target = vocabulary.targets[0]
    object.__setattr__(target, "seen", not target.seen)
    assert f"target '{target.name}'" in refused(check_leaks, store, groups, model)
    object.__setattr__(target, "seen", not target.seen)


def test_a_baseline_that_would_know_the_answer_stops(small_run, store):
    model, groups = small_run
    tested = groups[groups["part"] == TEST]
    everything = groups.assign(part=TRAIN)
    with pytest.raises(AssertionError, match=r"leak: held-out group .* is among the training groups"):
        list(questions.ask(store, everything, tested, model.vocabulary, model.config.split))


# ---------------------------------------------------------------- rivals and ensembles


def test_other_runs_beside_the_model(folder, store, small_run, refused):
    model, groups = small_run
    torch.manual_seed(0)
    other, split = fit(store, model.config.model_copy(update={"seed": 7}))
    table = evaluate(store, groups, model, rivals={"other": (other, split), "same": (model, groups)}).table
    wide = table.pivot_table(
        index=["dataset", "context", "perturbation", "metric"], columns="method", values="value"
    )
    shared = wide.dropna(subset=[METHOD])
    np.testing.assert_array_equal(shared["same"], shared[METHOD])
    assert (shared["other"] != shared[METHOD]).any()
    alone = evaluate(store, split, other).table
    of_other = table[table["method"] == "other"].reset_index(drop=True)
    expected = alone[alone["method"] == METHOD].reset_index(drop=True)
    pd.testing.assert_frame_equal(of_other.drop(columns="method"), expected.drop(columns="method"))

    elsewhere = small_config(folder, "split={kind: combo, folds: 3, fold: 1}", "preprocess.n_top_genes=20")
    sentence = refused(evaluate, store, groups, model, rivals={"other": fit(store, elsewhere)})
    assert "--against other: it was trained on another split" in sentence
    wider = small_config(folder, "split={kind: combo, folds: 3}", "preprocess.n_top_genes=30")
    assert "other genes" in refused(evaluate, store, groups, model, rivals={"other": fit(store, wider)})


@pytest.fixture(scope="module")
def ensemble(folder, store):
    """Two members, calibrated, which tests only read."""
    config = small_config(folder, "split={kind: combo, folds: 4}", "preprocess.n_top_genes=20")
    return fit_ensemble(store, config, [0, 1], folds=2, seeds_per_fold=2)


def test_an_ensemble_is_the_mean_of_its_members_with_intervals(ensemble, store, folder):
    model, groups = ensemble
    assert isinstance(model, Ensemble)
    assert model.calibration.kind == "combo"
    tested = questions.held_out_groups(groups, store.control)
    scores = evaluate(store, groups, model)
    for question in questions.ask(store, groups, tested, model.vocabulary, model.config.split):
        whole = answer(store, model, question)
        parts = [answer(store, member, question) for member in model.members]
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


def test_calibration_never_looks_at_the_held_out_groups(ensemble, store, folder, monkeypatch):
    model, groups = ensemble
    plan = plan_calibration(store, groups, model.config.split, 2)
    held = set(groups.loc[groups["part"] == TEST, "perturbation_name"])
    assert not held & {name for fold in plan.names for name in fold}
    assert sorted(name for fold in plan.names for name in fold) == sorted(
        {n for n in groups.loc[groups["part"] == TRAIN, "perturbation_name"] if "+" in n}
    )
    asked = []
    original = questions.ask

    def recording(store, split_groups, tested, *rest):
        asked.append(tested)
        return original(store, split_groups, tested, *rest)

    monkeypatch.setattr("tadvae.training.calibrate.ask", recording)
    models = []
    for split in plan.splits:
        assert held <= set(split.test)
        models.append([fit(store, model.config.model_copy(update={"split": split}))])
    calibrate(store, groups, model.vocabulary, plan, models)
    names = pd.concat(asked)["perturbation_name"]
    assert len(names)
    assert not held & set(names)
    for fold, part in zip(plan.names, asked, strict=True):
        assert set(part["perturbation_name"]) <= set(fold)


@pytest.mark.parametrize("kind", ["single", "context", "dataset", "none"])
def test_calibration_of_other_splits(kind, folder, store):
    settings = {"none": ["split.kind=none"]} | {name: given for name, (given, _) in SPLITS.items()}
    config = small_config(folder, *settings[kind])
    from tadvae.data.splits import split_groups

    groups = split_groups(store, config.split)
    plan = plan_calibration(store, groups, config.split, 2)
    assert plan.kind == ("single" if kind == "single" else "combo")
    held = groups.loc[groups["part"] == TEST, ["dataset", "context", "perturbation"]]
    for split in plan.splits:
        inner = split_groups(store, split)
        out = inner.loc[inner["part"] == TEST, ["dataset", "context", "perturbation"]]
        assert set(held.itertuples(index=False)) < set(out.itertuples(index=False))


def test_calibration_that_cannot_be(folder, store, refused):
    from tadvae.data.splits import split_groups

    cells = small_config(folder, "split.kind=cells").split
    assert "nothing to calibrate" in refused(plan_calibration, store, split_groups(store, cells), cells, 2)
    combo = small_config(folder, "split.kind=combo").split
    assert "--calibration-folds 99" in refused(plan_calibration, store, split_groups(store, combo), combo, 99)


def test_an_ensemble_predicts_with_intervals_or_says_why_not(ensemble, folder):
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
    controls = ad.read_h5ad(folder / "up.h5ad")
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
