"""The search space: what it accepts, what it refuses, and that what it proposes can be trained."""

import optuna
import pytest
import yaml

from tadvae.base.errors import UserError
from tune.config import DEFAULT_SPACE, SweepConfig
from tune.search import Define

ATTENTION = ["hard", "soft", "soft_log", "none"]


def spoiled(**changes):
    """A small good space with some of it replaced."""
    data = {
        "experiment": {"validation": {"every": 1}},
        "parameters": {
            "model.pathway.masking": {"choice": [*ATTENTION, "linear"]},
            "model.pathway.d_embed": {"choice": [64, 128], "when": {"model.pathway.masking": ATTENTION}},
            "train.learning_rate": {"loguniform": [1e-4, 1e-2]},
        },
        "derived": {"model.pathway.n_heads": {"key": "model.pathway.d_embed", "divide_by": 16}},
    }
    for key, value in changes.items():
        data[key] = {**data[key], **value} if isinstance(data.get(key), dict) else value
    return SweepConfig.parse(data, "space.yaml")


def test_the_default_space_holds_what_it_promises():
    config = SweepConfig.load(DEFAULT_SPACE)
    config.check(config.experiment)
    assert config.parameters["model.pathway.masking"].choice == ["hard", "soft", "soft_log", "linear", "none"]
    assert config.parameters["model.pathway.d_embed"].choice == [64, 128, 256]
    assert {"model.encoder.kind", "model.pathway.value_mode", "model.causal.n_factors"} <= set(
        config.parameters
    )
    assert {"loss.alpha.high", "loss.beta.high", "loss.sparsity"} <= set(config.parameters)
    assert "train.learning_rate" in config.parameters
    assert SweepConfig.load_text(config.to_yaml(), "again") == config


def test_every_proposal_of_the_default_space_can_be_trained():
    config = SweepConfig.load(DEFAULT_SPACE)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    define, seen = Define(config, 5), set()
    for number in range(150):
        proposal = define(study.ask())
        assert proposal["number"] == 5 + number
        experiment = config.trial_experiment(config.experiment, proposal["values"])
        pathway = experiment.model.pathway
        seen.add(pathway.masking)
        if pathway.masking == "linear":
            assert not {"model.pathway.value_mode", "model.pathway.d_embed"} & set(proposal["values"])
        else:
            assert pathway.d_embed == 16 * pathway.n_heads == proposal["values"]["model.pathway.d_embed"]
        # what is not searched keeps its default: a schedule's other fields too
        assert experiment.loss.alpha.end == config.experiment.loss.alpha.end == 5
        assert (
            yaml.safe_load(proposal["experiment"])["train"]["learning_rate"] == experiment.train.learning_rate
        )
    assert seen == {"hard", "soft", "soft_log", "linear", "none"}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"parameters": {"model.pathway.maskin": {"choice": [1]}}}, "unknown setting 'model.pathway.maskin'"),
        ({"parameters": {"model.pathway": {"choice": [1]}}}, "unknown setting 'model.pathway'"),
        ({"parameters": {"train.epochs.x": {"choice": [1]}}}, "unknown setting 'train.epochs.x'"),
        ({"parameters": {"split.fold": {"choice": [0, 1]}}}, "'split.fold' decides what trials are compared"),
        ({"parameters": {"validation.fold": {"choice": [0]}}}, "'validation.fold' decides what trials"),
        ({"parameters": {"seed": {}}}, "exactly one of choice, uniform, loguniform, integer, found none"),
        ({"parameters": {"seed": {"choice": [1], "integer": [1, 2]}}}, "found choice, integer"),
        ({"parameters": {"seed": {"chioce": [1]}}}, "unknown setting 'parameters.seed.chioce'"),
        ({"parameters": {"seed": {"choice": []}}}, "'choice' is empty"),
        ({"parameters": {"seed": {"choice": [1, 1]}}}, "names a value twice"),
        ({"parameters": {"seed": {"integer": [4, 4]}}}, "empty range: 4 is not below 4"),
        ({"parameters": {"seed": {"integer": [1.5, 4]}}}, "seed.integer"),
        ({"parameters": {"loss.sparsity": {"uniform": [0.5, 0.1]}}}, "empty range: 0.5 is not below 0.1"),
        ({"parameters": {"loss.sparsity": {"loguniform": [0, 1]}}}, "bounds above zero, found 0"),
        (
            {"parameters": {"seed": {"choice": [1], "when": {"loss.mmd": ["biased"]}}}},
            "not among the parameters",
        ),
        (
            {"parameters": {"seed": {"choice": [1], "when": {"train.learning_rate": [0.1]}}}},
            "'train.learning_rate', which is not a choice",
        ),
        (
            {"parameters": {"seed": {"choice": [1], "when": {"model.pathway.masking": ["sof"]}}}},
            r"to be \['sof'\], which it never is",
        ),
        (
            {
                "parameters": {
                    "seed": {"choice": [1], "when": {"loss.mmd": ["biased"]}},
                    "loss.mmd": {"choice": ["biased"], "when": {"seed": [1]}},
                }
            },
            r"cycle \(seed, loss.mmd\)",
        ),
        (
            {"derived": {"seed": {"key": "loss.mmd", "divide_by": 2}}},
            "'loss.mmd' is not among the parameters",
        ),
        ({"derived": {"seed": {"key": "model.pathway.d_embed", "divide_by": 48}}}, "multiples of 48"),
        (
            {"derived": {"train.learning_rate": {"key": "model.pathway.d_embed", "divide_by": 2}}},
            "both a parameter",
        ),
        ({"experiment": {"validation": {}}}, "experiment.validation.every"),
        ({"experiment": {"train": {"epochs": 3}}}, "grace_epochs 3 is not below experiment.train.epochs 3"),
        ({"metric": "accuracy"}, "'metric'"),
        ({"trials": 0}, "'trials'"),
        ({"colour": "red"}, "unknown setting 'colour'"),
    ],
)
def test_bad_spaces(refused, changes, sentence):
    import re

    assert re.search(sentence, refused(spoiled, **changes))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model.pathway.masking": {"choice": ["hard", "sofft"]}}, "masking=sofft"),
        ({"train.learning_rate": {"uniform": [-1.0, 1.0]}}, "train.learning_rate=-1.0"),
        (
            {
                "model.encoder.kind": {"choice": ["none", "full"]},
                "model.pathway.masking": {"choice": ["linear"]},
            },
            "full",
        ),
    ],
)
def test_values_that_no_run_accepts(refused, changes, sentence):
    if changes.get("model.pathway.masking"):  # the conditions of the small space name what is gone
        changes["model.pathway.d_embed"] = {"choice": [64]}
    config = spoiled(parameters=changes)
    assert sentence in refused(config.check, config.experiment)


def test_conditions_that_exclude_each_other(refused):
    config = spoiled(
        parameters={
            "loss.mmd": {"choice": ["biased"], "when": {"model.pathway.masking": ["hard"]}},
            "seed": {"choice": [1], "when": {"loss.mmd": ["biased"], "model.pathway.masking": ["soft"]}},
        }
    )
    assert "'seed': its conditions can never hold together" in refused(config.check, config.experiment)


def test_no_parameters(refused):
    sentence = refused(SweepConfig.parse, {"experiment": {"validation": {"every": 1}}}, "space.yaml")
    assert "'parameters' is missing" in sentence
    with pytest.raises(UserError, match=r"/nowhere\.yaml: no such file"):
        SweepConfig.load("/nowhere.yaml")
