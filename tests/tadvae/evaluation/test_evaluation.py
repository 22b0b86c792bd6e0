"""Every kind of split trains and evaluates end to end, without Ray; scores are those of the cells."""

import numpy as np
import pandas as pd
import pytest
import torch
from small_screens import SPLITS, small_config

from tadvae.data.reader import CellReader
from tadvae.data.splits import TEST, TRAIN
from tadvae.data.views import views_of
from tadvae.evaluation.ceiling import split_half_ceiling
from tadvae.evaluation.distances import energy_distance, median_bandwidths, mmd_unbiased
from tadvae.evaluation.evaluate import CEILING, METHOD, NULL, evaluate
from tadvae.evaluation.metrics import METRICS, pearson_delta, responsive_genes
from tadvae.training.fit import fit

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("kind", SPLITS)
def test_every_split_trains_and_evaluates(kind, small_folder, small_store):
    settings, categories = SPLITS[kind]
    model, groups = fit(small_store, small_config(small_folder, *settings))
    scores = evaluate(small_store, groups, model)
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


def test_scores_are_the_metrics_of_the_cells(small_folder, small_store):
    """The table again from the cells that the small_store holds, metric by metric."""
    config = small_config(small_folder, "split={kind: combo, folds: 3}")
    model, groups = fit(small_store, config)
    table = evaluate(small_store, groups, model).table
    tested = groups[groups["part"] == TEST]
    train = CellReader(small_store, views_of(small_store, model.vocabulary), config.split)
    row = tested.iloc[1]
    place = (int(row["dataset"]), int(row["context"]))
    genes = model.vocabulary.datasets[place[0]].genes

    def cells_of(perturbation):
        at = small_store.bags[
            (small_store.bags["dataset"] == place[0])
            & (small_store.bags["context"] == place[1])
            & (small_store.bags["perturbation"] == perturbation)
        ]
        return np.concatenate([train.read(*read)[1].dense(genes) for read in small_store.row_groups(at)])

    observed, control = cells_of(row["perturbation"]).astype(np.float64), cells_of(small_store.control)
    here = groups[(groups["dataset"] == place[0]) & (groups["context"] == place[1])]
    seen = here[(here["part"] == TRAIN) & (here["perturbation"] != small_store.control)]
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


def test_other_runs_beside_the_model(small_folder, small_store, small_run, refused):
    model, groups = small_run
    torch.manual_seed(0)
    other, split = fit(small_store, model.config.model_copy(update={"seed": 7}))
    table = evaluate(
        small_store, groups, model, rivals={"other": (other, split), "same": (model, groups)}
    ).table
    wide = table.pivot_table(
        index=["dataset", "context", "perturbation", "metric"], columns="method", values="value"
    )
    shared = wide.dropna(subset=[METHOD])
    np.testing.assert_array_equal(shared["same"], shared[METHOD])
    assert (shared["other"] != shared[METHOD]).any()
    alone = evaluate(small_store, split, other).table
    of_other = table[table["method"] == "other"].reset_index(drop=True)
    expected = alone[alone["method"] == METHOD].reset_index(drop=True)
    pd.testing.assert_frame_equal(of_other.drop(columns="method"), expected.drop(columns="method"))

    elsewhere = small_config(
        small_folder, "split={kind: combo, folds: 3, fold: 1}", "preprocess.n_top_genes=20"
    )
    sentence = refused(evaluate, small_store, groups, model, rivals={"other": fit(small_store, elsewhere)})
    assert "--against other: it was trained on another split" in sentence
    wider = small_config(small_folder, "split={kind: combo, folds: 3}", "preprocess.n_top_genes=30")
    assert "other genes" in refused(
        evaluate, small_store, groups, model, rivals={"other": fit(small_store, wider)}
    )
