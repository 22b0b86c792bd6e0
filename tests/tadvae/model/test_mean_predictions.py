"""Mean profiles under many perturbations: the same as one prediction after another."""

import itertools

import numpy as np
import pytest

from tadvae.base.errors import UserError
from tadvae.model import predictor
from tadvae.settings.experiment import ExperimentConfig
from tadvae.training.fit import fit

pytestmark = pytest.mark.slow

SMALL = [
    "model.pathway={d_embed: 16, n_heads: 2}",
    "model.causal={n_factors: 4, hidden: 16}",
    "train={epochs: 2, learning_rate: 0.01}",
]


@pytest.mark.parametrize(
    "settings",
    [
        ["model.decoder={d_gene: 16, hidden: 16}"],
        ["model.decoder={d_gene: 16, hidden: 16, counterfactual: mean}", "effects.weight=0"],
        ["model.decoder={kind: mlp, d_gene: 16, decode: direct, counterfactual: mean}"],
        ["model.decoder={kind: linear}", "effects.weight=1"],
    ],
    ids=["default", "mean, no effects", "mlp", "linear"],
)
def test_the_same_as_one_by_one(store, simulated, monkeypatch, settings):
    monkeypatch.setattr(predictor, "AT_ONCE", 3)  # several parts
    monkeypatch.setattr(predictor, "ROWS_AT_ONCE", 300)
    pathways = f"pathways.file={simulated.folder / 'pathways.gmt'}"
    model, _ = fit(store, ExperimentConfig.load(None, [pathways, *SMALL, *settings]))
    context = next(entry for entry in model.vocabulary.contexts if entry.dataset == 0)
    names = {"context": context.name, "dataset": model.vocabulary.datasets[0].name}
    seen = [target.name for target in model.vocabulary.targets if target.seen]
    asked = [*seen, *itertools.combinations(seen, 2), "+".join(seen[:3])]
    found = model.predict_means(asked, **names)
    assert found.shape == (len(asked), len(model.vocabulary.datasets[0].genes))
    for row, target in enumerate(asked):
        one = model.predict(target, **names)
        assert found.index[row] == one.uns["tadvae"]["perturbation"]
        assert found.columns.tolist() == one.var_names.tolist()
        np.testing.assert_allclose(found.iloc[row], one.var["predicted_mean"], rtol=1e-4, atol=1e-5)
    assert found.iloc[: len(seen)].std(axis=0).max() > 1e-4  # perturbations differ
    with pytest.raises(UserError, match="no prediction"):
        model.predict_means([seen[0], f"{seen[0]}+NOBODY"], **names)
