"""Validation: what is held out for it, and that its scores are those of the evaluation."""

import pytest

from tadvae.data.reader import training_bags
from tadvae.data.splits import SplitConfig, ValidationConfig, split_groups
from tadvae.evaluation.evaluate import METHOD, evaluate
from tadvae.settings.experiment import ExperimentConfig
from tadvae.training.fit import fit
from tadvae.training.validation import Patience, Validator

SETTINGS = [
    "stream.bags_per_batch=3",
    "model.pathway={d_embed: 16, n_heads: 2}",
    "model.causal={n_factors: 4, hidden: 16}",
    "model.decoder={d_gene: 16, hidden: 16}",
    "train={epochs: 2, learning_rate: 0.01}",
    "validation={every: 1, folds: 2, max_cells: 256}",
]


@pytest.mark.parametrize("split", ["combo", "single", "none", "cells"])
@pytest.mark.parametrize("kind", ["combo", "single"])
def test_validation_takes_nothing_of_the_test(simulated, convert_here, split, kind):
    store = convert_here(simulated.spec)
    config = SplitConfig(kind=split)
    plain = split_groups(store, config)
    groups = split_groups(store, config, ValidationConfig(every=1, kind=kind, folds=3))
    held = groups["part"] == "validation"
    assert held.any()
    assert (plain.loc[held, "part"] != "test").all()
    assert groups.loc[~held, "part"].equals(plain.loc[~held, "part"])
    assert (groups.loc[held, "perturbation"] != store.control).all()
    if kind == "combo":
        assert groups.loc[held, "perturbation_name"].str.contains("+", regex=False).all()
    trained = training_bags(store, groups, config)
    keys = ["dataset", "context", "perturbation"]
    left = trained.merge(groups, on=keys)
    assert set(left["part"]) <= {"train", "both"}
    assert split_groups(store, config, ValidationConfig()).equals(plain)


def test_categories_say_what_is_left_to_learn_from(simulated, convert_here):
    """Where the singles of a combination are held out for validation, training has not seen them."""
    store = convert_here(simulated.spec)
    groups = split_groups(store, SplitConfig(), ValidationConfig(every=1, kind="single", folds=2))
    train = groups[groups["part"] == "train"]
    alone = {(r.dataset, r.perturbation_name) for r in train.itertuples()}
    for row in groups[groups["part"] == "test"].itertuples():
        seen = sum((row.dataset, name) in alone for name in row.perturbation_name.split("+"))
        assert row.category == f"combo_seen{seen}"


def test_nothing_to_hold_out_is_one_sentence(simulated, convert_here, refused):
    store = convert_here(simulated.spec)
    config = SplitConfig(kind="single", folds=2)
    singles = split_groups(store, config)
    left = singles[singles["part"] == "train"]["perturbation_name"].str.contains("+", regex=False).sum()
    validation = ValidationConfig(every=1, folds=max(int(left), 1) + 20, fold=max(int(left), 1) + 19)
    sentence = refused(split_groups, store, config, validation)
    assert "no combo left to hold out" in sentence
    assert "validation.kind=single" in sentence


def test_scores_are_those_of_the_evaluation(simulated, convert_here, monkeypatch):
    store = convert_here(simulated.spec)
    config = ExperimentConfig.load(None, [f"pathways.file={simulated.folder / 'pathways.gmt'}", *SETTINGS])
    model, groups = fit(store, config)
    assert {"train", "validation", "test"} == set(groups["part"])
    scores = Validator(store, groups, model.vocabulary, config, model.effects).score(model.module)
    # the evaluation, made to look at the validation groups
    swapped = groups.assign(
        part=groups["part"].map({"validation": "test", "test": "validation"}.get).fillna("train")
    )
    # the leak check would rightly refuse such a split
    monkeypatch.setattr("tadvae.evaluation.evaluate.check_leaks", lambda *arguments: None)
    table = evaluate(store, swapped, model).table
    table = table[table["method"] == METHOD]
    for metric in ("pearson_delta", "l2", "rmse", "cosine_logfc"):
        expected = table.loc[table["metric"] == metric, "value"].mean()
        assert scores[f"val_{metric}"] == pytest.approx(expected, abs=1e-6)


def test_due_every_few_epochs_and_at_the_end():
    class OnlySettings(Validator):
        def __init__(self, config):
            self.config = config

    def due(every, epochs):
        config = ExperimentConfig.load(None, [f"validation.every={every}", f"train.epochs={epochs}"])
        return [epoch for epoch in range(epochs) if OnlySettings(config).due(epoch)]

    assert due(1, 3) == [0, 1, 2]
    assert due(2, 5) == [1, 3, 4]
    assert due(9, 4) == [3]
    assert due("null", 4) == []


def test_patience_in_plain_python():
    """Both directions, ties and NaN, against the definition."""
    nan = float("nan")
    series = [[0.1, 0.3, 0.2, 0.3, 0.1], [nan, 0.2, 0.1, 0.0], [nan, nan, nan], [3, 2, 1], [1, 2, 3]]
    for metric, sign in (("pearson_delta", 1), ("l2", -1)):
        for values in series:
            patience = Patience(ValidationConfig(every=1, metric=metric, patience=2))
            best, since = -float("inf"), 0
            for i, value in enumerate(values):
                patience.add({f"val_{metric}": value})
                better = sign * value > best
                best, since = (sign * value, 0) if better else (best, 0 if i == 0 else since + 1)
                assert patience.best_is_last == (better or i == 0)
                assert patience.over == (since >= 2)


def test_training_ends_with_the_best_validation(simulated, convert_here, monkeypatch):
    store = convert_here(simulated.spec)
    extra = ["train={epochs: 40, learning_rate: 0.03}", "validation.patience=2", "effects.weight=0"]
    config = ExperimentConfig.load(
        None, [*SETTINGS, *extra, f"pathways.file={simulated.folder / 'pathways.gmt'}"]
    )
    scores, score = [], Validator.score

    def noted(self, module):
        scores.append(score(self, module))
        return scores[-1]

    monkeypatch.setattr(Validator, "score", noted)
    model, groups = fit(store, config)
    values = [each["val_pearson_delta"] for each in scores]
    best = values.index(max(values))
    assert len(values) == best + 3 < 40
    again = score(Validator(store, groups, model.vocabulary, config), model.module)
    assert again == pytest.approx(scores[best], abs=1e-6)


def test_patience_needs_validations():
    with pytest.raises(ValueError, match="'patience' counts validations"):
        ValidationConfig(patience=2)
