"""An atlas without perturbations: it trains, it has activities, and the advice at the end fits."""

import numpy as np

from tadvae.data.splits import nothing_to_evaluate, split_groups
from tadvae.evaluation.questions import held_out_groups
from tadvae.settings.experiment import ExperimentConfig
from tadvae.training.fit import fit

TINY = [
    "model.pathway={d_embed: 8, n_heads: 2}",
    "model.causal={n_factors: 2, hidden: 6}",
    "model.decoder={d_gene: 4, hidden: 6}",
    "pathways.min_measured=3",
    "train.epochs=1",
]


def config(folder, *settings):
    (folder / "sets.gmt").write_text("P\tsome of them\t" + "\t".join(f"G{i}" for i in range(1, 8)) + "\n")
    return ExperimentConfig.load(None, [f"pathways.file={folder / 'sets.gmt'}", *TINY, *settings])


def test_an_atlas_ends_with_advice_that_fits(write_spec, screen, convert_here, tmp_path, refused):
    store = convert_here(write_spec(screen, perturbation=None))
    model, groups = fit(store, config(tmp_path))
    for reason in (nothing_to_evaluate(groups) + ".", refused(held_out_groups, groups, store.control)):
        assert "no perturbations" in reason
        assert ".activities(adata)" in reason
        assert "split.kind" not in reason
    assert np.isfinite(model.activities(screen)).all(axis=None)
    assert np.isfinite(model.latent(screen)).all()


def test_advice_for_screens(write_spec, screen, convert_here, tmp_path):
    store = convert_here(write_spec(screen))
    folds = ("split.folds=2",)
    assert (
        nothing_to_evaluate(split_groups(store, config(tmp_path, "split.kind=single", *folds).split)) is None
    )
    reason = nothing_to_evaluate(split_groups(store, config(tmp_path, "split.kind=none").split))
    assert "train with another split" in reason
