"""The search space: what it accepts, what it refuses, and that what it proposes can be trained."""

import itertools
import math
import re
from pathlib import Path

import optuna
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tadvae.base.errors import UserError
from tune.config import DEFAULT_SPACE, PAPER, SweepConfig
from tune.search import Define
from tune.space import covering

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
    assert config.parameters["model.pathway.masking"].choice == [
        "agreement",
        *ATTENTION[:3],
        "linear",
        "none",
    ]
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
        if pathway.masking not in ATTENTION:
            assert not {"model.pathway.value_mode", "model.pathway.d_embed"} & set(proposal["values"])
        else:
            assert pathway.d_embed == 16 * pathway.n_heads == proposal["values"]["model.pathway.d_embed"]
        # what is not searched keeps its default: a schedule's other fields too
        assert experiment.loss.alpha.end == config.experiment.loss.alpha.end == 5
        assert (
            yaml.safe_load(proposal["experiment"])["train"]["learning_rate"] == experiment.train.learning_rate
        )
    assert seen == {"agreement", *ATTENTION, "linear"}


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


def test_the_paper_grid_is_its_question():
    """Five masks × {64/4, 128/8, 256/16} × {none, inducing}, each once; linear has neither of the two."""
    config = SweepConfig.load(PAPER)
    config.check(config.experiment)
    experiments = [config.trial_experiment(config.experiment, values) for values in config.points()]
    found = [
        (e.model.pathway.masking, e.model.pathway.d_embed, e.model.pathway.n_heads, e.model.encoder.kind)
        for e in experiments
        if e.model.pathway.masking != "linear"
    ]
    assert sorted(found) == sorted(
        (masking, d, heads, encoder)
        for masking in ATTENTION
        for d, heads in ((64, 4), (128, 8), (256, 16))
        for encoder in ("none", "inducing")
    )
    assert config.n_trials == len(experiments) == 25
    assert config.scheduler is None
    assert {e.train.epochs for e in experiments} == {10}


def test_the_default_space_begins_with_every_pair_of_the_three():
    config = SweepConfig.load(DEFAULT_SPACE)
    points, keys = config.points(), config.first
    assert keys == ["model.pathway.masking", "model.pathway.d_embed", "model.encoder.kind"]
    assert len(points) <= 14 < config.trials
    for i, a in enumerate(keys):
        for b in keys[i + 1 :]:
            pairs = {(p[a], p[b]) for p in points if a in p and b in p}
            assert pairs == {(p[a], p[b]) for p in config.grid(keys) if a in p and b in p}
    assert {p["model.pathway.masking"] for p in points} == {"agreement", *ATTENTION, "linear"}
    for point in points:  # all else as it is without a sweep
        other = {key: value for key, value in point.items() if key not in keys}
        assert set(other) >= {"train.learning_rate", "loss.alpha.high", "model.causal.n_factors"}
        experiment = config.trial_experiment(config.experiment, point)
        assert experiment.loss == config.experiment.loss
        assert experiment.train == config.experiment.train
    assert len(config.model_copy(update={"trials": 4}).points()) == 4


@given(
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    dropped=st.integers(0, 3),
)
def test_covering_has_every_pair_and_no_more_than_needed(sizes, dropped):
    points = [
        dict(zip("abcd", values, strict=False)) for values in itertools.product(*(range(n) for n in sizes))
    ]
    points = [point for i, point in enumerate(points) if i % 4 != dropped] or points
    chosen = covering(points)
    assert all(point in points for point in chosen)

    def pairs(some):
        return {pair for point in some for pair in itertools.combinations(sorted(point.items()), 2)}

    assert pairs(chosen) == pairs(points)
    assert len({tuple(p.items()) for p in chosen}) == len(chosen)
    largest = sorted(sizes)[-2:]
    if len(points) == math.prod(sizes):
        assert len(chosen) >= math.prod(largest)


def test_files_among_the_values_of_a_parameter(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    text = """
experiment: {validation: {every: 1}}
parameters:
  pathways.file: {choice: [a.gmt, /b.gmt, null]}
  preprocess.genes: {choice: [all, genes.txt], when: {pathways.file: [a.gmt]}}
"""
    (tmp_path / "configs/space.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    settings = ["experiment.model.pathway." + each for each in ("masking=hard", "gene_vectors=v.tsv")]
    config = SweepConfig.load("configs/space.yaml", settings).located()
    here = str(tmp_path / "configs")
    assert config.parameters["pathways.file"].choice == [f"{here}/a.gmt", "/b.gmt", None]
    assert config.parameters["preprocess.genes"].choice == ["all", f"{here}/genes.txt"]
    assert config.parameters["preprocess.genes"].when == {"pathways.file": [f"{here}/a.gmt"]}
    assert config.experiment.model.pathway.gene_vectors == f"{tmp_path}/v.tsv"
    assert SweepConfig.load_text(config.to_yaml(), "sweep.yaml").located() == config


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"first": ["loss.sparsity"]}, "'first' names 'loss.sparsity', which is not among the parameters"),
        ({"first": ["train.learning_rate"]}, "'train.learning_rate' is a range"),
        ({"search": "grid"}, "'train.learning_rate' is a range; a grid and 'first' need a choice"),
        ({"workers": 2, "gpus": 0.5}, "cannot share a GPU"),
        ({"gpus": 2}, "'gpus'"),
    ],
)
def test_bad_sweeps(refused, changes, sentence):
    assert sentence in refused(spoiled, **changes)


def test_the_space_of_the_page_is_one():
    page = (Path(__file__).parents[2] / "docs/sweeps.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"^```text\n(search: .*?)^```$", page, re.M | re.S)
    config = SweepConfig.load_text(text, "docs/sweeps.md")
    config.check(config.experiment)
    assert config.n_trials == 3
    assert config.scheduler is None
    defaults = SweepConfig.load(DEFAULT_SPACE)
    assert f"{defaults.trials} (`--trials`)" in page
    assert f"The first {len(defaults.points())} trials have every pair" in page
