"""What would fail in a trial is refused before the first one: without Ray, on the store of the tests."""

from pathlib import Path

import pytest

from tadvae.base.errors import UserError
from tadvae.data.reader import loop
from tune.config import SweepConfig
from tune.preflight import check_settings, check_trials, trials_to_check


@pytest.fixture
def space(small_space, simulated):
    """Settings of a small sweep, some of them replaced."""

    def space(**changes):
        experiment = {
            **small_space["experiment"],
            "pathways": {"file": str(simulated.folder / "pathways.gmt")},
        }
        return SweepConfig.parse({**small_space, "experiment": experiment, **changes}, "space.yaml")

    return space


def grid(**parameters):
    return {
        "search": "grid",
        "first": [],
        "derived": {},
        "parameters": {key.replace("__", "."): {"choice": values} for key, values in parameters.items()},
    }


def test_good_trials_pass_and_the_store_is_read_once(space, store, monkeypatch):
    import tune.preflight as module

    prepared, built = [], []
    real, network = module.prepare_training, module.TADVAEModule
    monkeypatch.setattr(module, "prepare_training", lambda *a: prepared.append(a) or real(*a))
    monkeypatch.setattr(module, "TADVAEModule", lambda *a: built.append(a) or network(*a))
    config = space()
    trials = check_settings(config)
    assert len(trials) > 8
    found = check_trials(store, trials, loop)
    assert found.vocabulary.membership.n_pathways == 9
    assert len(prepared) == 1  # the learning rate and the network change nothing about the data
    assert len(built) == len({e.model.model_dump_json() for _, e in trials})


def test_all_points_of_a_grid_are_checked_and_some_of_a_space(space):
    config = space(**grid(model__pathway__masking=["hard", "none"], train__learning_rate=[0.1, 0.2]))
    assert len(list(trials_to_check(config))) == config.n_trials == 4
    assert {v["model.pathway.masking"] for v in trials_to_check(space())} == {
        "hard", "soft", "soft_log", "linear", "none",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        (
            {"model__pathway__masking": ["hard", "linear"], "model__encoder__kind": ["full"]},
            ["full", "linear"],
        ),
        ({"train__learning_rate": [0.1, -0.1]}, ["learning_rate", "-0.1"]),
        ({"pathways__file": ["/nowhere/a.gmt"]}, ["pathways.file: /nowhere/a.gmt: no such"]),
        (
            {"preprocess__genes": ["all", "/nowhere/g.txt"]},
            ["preprocess.genes: /nowhere/g.txt: no such"],
        ),
    ],
)
def test_settings_are_refused_without_the_store(space, refused, parameters, words):
    sentence = refused(check_settings, space(**grid(**parameters)))
    assert all(word in sentence for word in words)


def test_what_only_the_store_can_refuse(space, store, refused, tmp_path, simulated):
    def sentence(config):
        return refused(check_trials, store, check_settings(config), loop)

    config = space(**grid(pathways__min_measured=[2, 90]))
    found = sentence(config)
    assert found.startswith("a trial with min_measured=90: ")
    assert "none of its 9 pathways has 90 or more" in found
    experiment = {
        "validation": {"every": 1, "folds": 90, "fold": 80},  # there are not so many combinations
        "pathways": {"file": str(simulated.folder / "pathways.gmt")},
    }
    assert "validation: there is no combo left" in sentence(space(experiment=experiment))
    vectors = tmp_path / "vectors.tsv"
    vectors.write_text("G1\t0.5\n")
    config = space(**grid(model__pathway__masking=["hard"], model__pathway__gene_vectors=[str(vectors)]))
    assert Path(vectors).name in sentence(config)


def test_trials_that_would_all_have_the_same_score_are_refused(space, store):
    """Targets that no training perturbation has are unknown to a network with a row per target."""

    def check(**settings):
        experiment = space().experiment.model_dump(mode="json", exclude_defaults=True)
        experiment["validation"] = {"every": 1, "kind": "single"}
        config = space(**grid(model__pathway__masking=["hard"]))
        changed = config.experiment.parse({**experiment, **settings}, "space.yaml")
        return check_trials(store, check_settings(config.model_copy(update={"experiment": changed})), loop)

    with pytest.raises(UserError, match="the regression of mean effects alone predicts all"):
        check()
    check(effects={"weight": 0})
    check(model={"causal": {"targets": "gene"}})
