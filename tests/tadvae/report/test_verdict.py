"""The model and the best baseline: from the definition, and in words."""

import numpy as np
import pandas as pd
import pytest

from tadvae.evaluation.bootstrap import Interval
from tadvae.report.verdict import AgainstBaseline, against_baselines, table, verdict

VALUES = {  # by metric and method, of the same five groups
    "l2": {
        "tadvae": [1.0, 1.1, 0.9, 1.2, 1.0],
        "additive": [2.0, 2.2, 1.9, 2.1, 2.0],
        "mean": [3.0] * 5,
        "null_95": [0.0] * 5,
    },
    "pearson_delta": {
        "tadvae": [0.5, 0.4, 0.6, 0.5, np.nan],
        "additive": [0.5, 0.5, 0.5, 0.5, 0.1],
        "noise_ceiling": [0.9] * 5,
    },
    "energy_distance": {"tadvae": [2.0] * 5, "mean": [1.0, 1.2, 0.9, 1.1, 1.0]},
    "rank_cosine": {"tadvae": [0.0] * 5, "mean": [0.0] * 5},
    "coverage": {"tadvae": [0.9] * 5, "mean": [0.5] * 5},
    "mmd": {"tadvae": [0.1] * 5},
}


def scores_of(category="all"):
    rows = [
        {"dataset": 0, "context": 0, "perturbation": i, "category": category, "method": method}
        | {"metric": metric, "value": value}
        for metric, methods in VALUES.items()
        for method, values in methods.items()
        for i, value in enumerate(values)
    ]
    return pd.DataFrame(rows)


def test_the_best_baseline_is_compared_in_pairs():
    found = {each.metric: each for each in against_baselines(scores_of())}
    assert list(found) == ["l2", "pearson_delta", "energy_distance", "rank_cosine"]
    l2 = found["l2"]
    assert (l2.baseline, l2.n, l2.verdict) == ("additive", 5, "better")  # not the mean, nor the null
    gain = np.subtract(VALUES["l2"]["additive"], VALUES["l2"]["tadvae"])
    assert l2.gain.mean == pytest.approx(gain.mean())
    assert gain.min() <= l2.gain.low < gain.mean() < l2.gain.high <= gain.max()
    assert l2.percent.mean == pytest.approx(100 * gain.mean() / np.mean(VALUES["l2"]["additive"]))
    pearson = found["pearson_delta"]
    assert (pearson.n, pearson.verdict) == (4, "level")  # the group without a score is left out
    assert pearson.best == pytest.approx(0.5)
    assert found["energy_distance"].verdict == "worse"
    assert found["rank_cosine"].percent == Interval(0.0, 0.0, 0.0)
    shown = table(list(found.values())).set_index("metric")
    assert shown.loc["l2 ↓", "difference"] == pytest.approx(-gain.mean())
    assert shown.loc["l2 ↓", "low"] < shown.loc["l2 ↓", "high"] < 0
    assert shown.loc["pearson_delta ↑", "difference"] == pytest.approx(0.0)


def test_the_sentence_counts_and_names():
    found = against_baselines(pd.concat([scores_of("seen"), scores_of("unseen")]))
    assert len(found) == 8
    words = verdict(found)
    assert words.startswith(
        "tadvae is better than the best baseline in 2 of 8 comparisons (l2 of seen by 49% ["
    )
    assert "level in 4, and worse in 2 (energy_distance of seen by 92.3% [" in words
    low, high = (float(part) for part in words.split("seen by 92.3% [")[1].split("]")[0].split(", "))
    assert 0 < low < 92.3 < high
    many = [
        AgainstBaseline("all", "l2", "mean", 1.0, 0.0, 3, Interval(float(i), 0.5, 9.0)) for i in (1, 2, 3, 4)
    ]
    assert "(l2 by 1 [0.5, 9], l2 by 2 [0.5, 9], l2 by 3 [0.5, 9] and 1 more)" in verdict(many)
