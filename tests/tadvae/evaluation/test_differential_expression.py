"""Scores on responding genes: against plain loops, against cell-eval's own figures, and their edges."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tadvae.evaluation.differential_expression import (
    DE_METRICS,
    PSEUDOCOUNT,
    Response,
    log2_fold_change,
    responding_genes,
)
from tadvae.evaluation.metrics import HIGHER_IS_BETTER, METRICS

GOLDEN = Path(__file__).parents[2] / "golden" / "cell_eval.json"
SEEDS = st.integers(0, 2**32 - 1)


def make_response(seed, genes=20):
    rng = np.random.default_rng(seed)
    predicted, observed, control = (rng.gamma(1.0, 0.5, genes) for _ in range(3))
    kept = np.arange(genes) != 3
    return Response(predicted, observed, control, (rng.random(genes) < 0.4) & kept, kept)


def expected_scores(each):
    """The definitions, gene by gene."""
    chosen = [g for g in range(len(each.control)) if each.responds[g]]

    def change(profile, g, extra):
        return math.log2((math.expm1(profile[g]) + extra) / (math.expm1(each.control[g]) + extra))

    if not chosen:
        return dict.fromkeys(DE_METRICS, math.nan)
    moved = sorted(
        (g for g in range(len(each.control)) if each.kept[g]),
        key=lambda g: -abs(change(each.predicted, g, PSEUDOCOUNT)),
    )[: len(chosen)]
    right = [change(each.predicted, g, 0) * change(each.observed, g, 0) > 0 for g in chosen]
    errors = [
        abs(change(each.predicted, g, PSEUDOCOUNT) - change(each.observed, g, PSEUDOCOUNT)) for g in chosen
    ]
    pairs = [[change(profile, g, 0) for g in chosen] for profile in (each.predicted, each.observed)]
    return {
        "de_direction_match": sum(right) / len(chosen),
        "de_spearman_lfc_sig": stats.spearmanr(*pairs).statistic if len(chosen) > 1 else math.nan,
        "de_jaccard": len(set(moved) & set(chosen)) / len(set(moved) | set(chosen)),
        "de_lfc_error": sum(errors) / len(chosen),
    }


@given(SEEDS)
def test_scores_are_their_definitions(seed):
    response = make_response(seed)
    expected = expected_scores(response)
    for name, metric in DE_METRICS.items():
        assert metric(response) == pytest.approx(expected[name], abs=1e-12, nan_ok=True), name


@given(SEEDS)
def test_a_responding_gene_has_a_small_rate_of_false_discovery(seed):
    rng = np.random.default_rng(seed)
    cells, controls = rng.poisson(1.0, (15, 6)).astype(float), rng.poisson(1.0, (20, 6)).astype(float)
    cells[:, 0] += 2.0
    cells[:, 1] = controls[0, 1] = 1.0
    controls[:, 1] = 1.0  # a gene with one value
    p = [
        1.0 if g == 1 else stats.mannwhitneyu(cells[:, g], controls[:, g], method="asymptotic").pvalue
        for g in range(6)
    ]
    order = np.argsort(p)
    rate = [min(p[order[j]] * 6 / (j + 1) for j in range(i, 6)) for i in range(6)]
    expected = np.zeros(6, bool)
    expected[order] = np.array(rate) < 0.05
    assert np.array_equal(responding_genes(cells, controls), expected)


def test_scores_equal_those_of_cell_eval():
    golden = json.loads(GOLDEN.read_text())

    def read(which):
        groups = {name: np.array(counts, float) for name, counts in golden[which].items()}
        return {
            name: np.log1p(x / x.sum(1, keepdims=True) * 1e4).astype(np.float32) for name, x in groups.items()
        }

    real, pred = read("real"), read("pred")
    control = real["control"].mean(axis=0, dtype=np.float64)
    compared = {"pearson_delta", "de_direction_match", "de_spearman_lfc_sig"}
    assert len(golden["scores"]) == 4
    for name, theirs in golden["scores"].items():
        assert compared == (set(METRICS) | set(DE_METRICS)) & set(theirs)  # every metric of one name
        means = [part[name].mean(axis=0, dtype=np.float64) for part in (pred, real)]
        responds = responding_genes(real[name], real["control"])
        assert int(responds.sum()) == theirs["de_nsig_counts_real"]
        response = Response(*means, control, responds, np.ones_like(responds))
        ours = {each: DE_METRICS[each](response) for each in compared & set(DE_METRICS)}
        ours["pearson_delta"] = METRICS["pearson_delta"](*means, control)
        for each, value in ours.items():
            assert value == pytest.approx(theirs[each], abs=1e-6), (name, each)


def test_a_prediction_without_effect_and_a_truth_without_response():
    full = make_response(1)
    still = Response(full.control, full.observed, full.control, full.responds, full.kept)
    assert {name: metric(still) for name, metric in DE_METRICS.items() if name != "de_lfc_error"} == {
        "de_direction_match": 0.0, "de_spearman_lfc_sig": 0.0, "de_jaccard": 0.0,
    }  # fmt: skip
    none = Response(full.predicted, full.observed, full.control, np.zeros(20, bool), full.kept)
    assert all(math.isnan(metric(none)) for metric in DE_METRICS.values())


def test_the_perturbed_gene_is_never_taken_as_moved():
    control = np.ones(4)
    predicted = np.array([9.0, 1.0, 1.5, 1.0])  # moves its own gene most
    kept = np.array([False, True, True, True])
    response = Response(predicted, predicted, control, np.array([False, False, True, False]), kept)
    assert DE_METRICS["de_jaccard"](response) == 1.0


def test_fold_changes_of_genes_that_are_silent():
    change = log2_fold_change([0.0, 0.0, 1.0, -0.3], [0.0, 1.0, 0.0, 0.0])
    assert change.tolist() == [0.0, -math.inf, math.inf, 0.0]


def test_every_score_has_a_direction_and_wrong_shapes_are_refused():
    assert set(DE_METRICS) <= set(HIGHER_IS_BETTER)
    with pytest.raises(ValueError, match="expected"):
        responding_genes(np.zeros((3, 4)), np.zeros((3, 5)))
