"""Own expression of targets and association of batches, against their definitions."""

import numpy as np
import pytest
from scipy.stats import chi2_contingency, mannwhitneyu

from tadvae.screen_qc.batches import cramers_v
from tadvae.screen_qc.target_expression import PSEUDOCOUNT, target_change


def test_change_of_a_target():
    rng = np.random.default_rng(0)
    x, y = np.log1p(rng.poisson(1.0, 200)), np.log1p(rng.poisson(4.0, 300))
    found = target_change(x, y)
    a, b = np.expm1(x), np.expm1(y)
    assert found.log2_fold_change == pytest.approx(
        np.log2((a.mean() + PSEUDOCOUNT) / (b.mean() + PSEUDOCOUNT)), abs=1e-12
    )
    assert found.p == mannwhitneyu(x, y, method="asymptotic").pvalue
    draws = [
        np.log2((rng.choice(a, 200).mean() + PSEUDOCOUNT) / (rng.choice(b, 300).mean() + PSEUDOCOUNT))
        for _ in range(2000)
    ]
    assert (found.high - found.low) / (2 * 1.96) == pytest.approx(np.std(draws), rel=0.1)


def test_a_gene_that_is_never_expressed_does_not_change():
    found = target_change(np.zeros(5), np.zeros(7))
    assert (found.log2_fold_change, found.p) == (0.0, 1.0)


def test_cramers_v():
    assert cramers_v([[30, 0], [0, 30]])[0] == pytest.approx(1.0, abs=0.02)
    assert cramers_v([[30, 30], [30, 30]])[0] == 0.0
    table = np.array([[20, 5, 9], [7, 30, 2]])
    n, (r, c) = table.sum(), table.shape
    chi = chi2_contingency(table, correction=False)
    phi = max(0, chi.statistic / n - (r - 1) * (c - 1) / (n - 1))
    smaller = min(r - (r - 1) ** 2 / (n - 1), c - (c - 1) ** 2 / (n - 1)) - 1
    assert cramers_v(table) == pytest.approx((np.sqrt(phi / smaller), chi.pvalue))
    assert all(np.isnan(cramers_v([[3, 4]])))
    assert all(np.isnan(cramers_v(np.zeros((0, 0)))))
