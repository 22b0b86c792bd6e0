"""The page of a prediction: its enrichment from the definition, its values those of the prediction."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tadvae.base.errors import UserError
from tadvae.evaluation.enrichment import rank_biserial
from tadvae.model.conformal import Calibration
from tadvae.model.ensemble import Ensemble
from tadvae.model.tadvae import TADVAE
from tadvae.nn.network import TADVAEModule
from tadvae.pathways.membership import Membership
from tadvae.report.charts import NO_VALUE
from tadvae.report.prediction import prediction_of
from tadvae.report.prediction_page import answer, genes_chart, prediction_page


@given(st.lists(st.integers(-3, 3), min_size=4, max_size=12), st.integers(0, 2**32 - 1))
def test_enrichment_is_the_share_of_pairs(change, seed):
    rng = np.random.default_rng(seed)
    genes = np.sort(rng.choice(20, len(change), replace=False))
    inside = rng.random((3, 20)) < 0.4
    pathway, gene = np.nonzero(inside)
    membership = Membership(["a", "b", "c"], ["a", "b", "c"], pathway, gene, 20)
    found = rank_biserial(change, genes, membership)
    for p in range(3):
        own = [c for c, g in zip(change, genes, strict=True) if inside[p, g]]
        others = [c for c, g in zip(change, genes, strict=True) if not inside[p, g]]
        signs = [np.sign(a - b) for a in own for b in others]
        assert found[p] == pytest.approx(np.mean(signs)) if signs else np.isnan(found[p])


def test_it_shows_what_was_predicted(spelt_model):
    adata = spelt_model.predict("H2AFZ", context="OLD")
    found = prediction_of(spelt_model, adata)
    change = (adata.var["predicted_mean"] - adata.var["control_mean"]).to_dict()
    assert dict(zip(found.genes["gene"], found.genes["change"], strict=True)) == pytest.approx(change)
    assert found.genes["change"].abs().is_monotonic_decreasing
    assert found.genes.loc[found.genes["targeted"], "gene"].tolist() == ["H2AFZ"]
    (row,) = found.pathways.to_dict("records")
    assert row["genes"] == 6
    html = prediction_page(found)
    assert answer(found) in html.replace("&#39;", "'")
    se = found.genes["standard_error"]
    n = int((found.genes["change"].abs() > 1.96 * se).sum())
    assert f"for {n} genes the change is larger than 1.96 standard errors" in answer(found)
    assert se.tolist() == pytest.approx(adata.var["se"].loc[found.genes["gene"]].tolist())
    assert "over its standard error" in " ".join(html.split())
    without = adata.copy()
    del without.var["se"]
    page = prediction_page(prediction_of(spelt_model, without))
    assert "does not know how certain" in " ".join(page.split())
    assert "seed_spread" not in found.genes
    assert genes_chart(found).count("<circle") == len(found.genes)
    counts = spelt_model.predict("H2AFZ", context="OLD", units="counts")
    with pytest.raises(UserError, match="log1p"):
        prediction_of(spelt_model, counts)


def test_an_ensemble_shows_its_disagreement_and_intervals(spelt_model):
    torch.manual_seed(1)
    m = spelt_model
    module = TADVAEModule(m.config.model, m.config.loss, m.vocabulary)
    with torch.no_grad():
        module.decoder.gene.add_(torch.randn_like(module.decoder.gene))
    second = TADVAE(module, m.vocabulary, m.config, m.controls, m.effects)
    scale = {entry.name: np.full(len(entry.genes), 0.01) for entry in m.vocabulary.datasets}
    ensemble = Ensemble([m, second], Calibration(0.9, 2.0, scale, 12, "single", False))
    adata = ensemble.predict("H2AFZ", context="OLD")
    found = prediction_of(ensemble, adata)
    genes = found.genes.set_index("gene").loc[adata.var_names]
    each = [model.predict("H2AFZ", context="OLD").var["predicted_mean"] for model in (m, second)]
    np.testing.assert_allclose(genes["seed_spread"], np.std(each, axis=0, ddof=1), atol=1e-6)
    np.testing.assert_allclose(genes["half_width"], 0.02, atol=1e-6)
    sure = int((genes["change"].abs() > 0.02).sum())
    assert f"for {sure} genes the 90% interval excludes no change" in answer(found)
    assert genes_chart(found).count(NO_VALUE) == len(genes) - sure
    assert "means that 2 seeds predict" in " ".join(prediction_page(found).split())
