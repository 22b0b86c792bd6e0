"""Search and halving go on from records as if the sweep had never ended."""

from types import SimpleNamespace

import optuna
import pytest
import yaml

from tune.config import SweepConfig
from tune.importance import importances
from tune.records import TrialRecord, best_of
from tune.search import Halving, TrainAll, optuna_search, study_of

EPOCH = 100.0


def record(number, value, status="finished", masking="hard", rate=0.01, epochs=3):
    curve = [
        {"epoch": e, "cells_seen": EPOCH * (e + 1), "val_pearson_delta": value + 0.01 * e, "loss": 1.0}
        for e in range(epochs)
    ]
    values = {"model.pathway.masking": masking, "train.learning_rate": rate}
    if masking != "linear":
        values["model.pathway.d_embed"] = 32
    return TrialRecord(number=number, values=values, settings=values, status=status, curve=curve)


@pytest.fixture
def config(small_space):
    return SweepConfig.parse(small_space, "small space")


def test_a_trial_that_was_running_comes_first_with_its_number(config):
    records = [record(0, 0.2), record(1, 0.1, "running", "linear", 0.02), record(2, 0.3, "stopped")]
    search = optuna_search(config, records)
    again, new = search.suggest("a"), search.suggest("b")
    assert again["number"] == 1
    assert again["values"] == records[1].values
    assert new["number"] == 3
    experiment = yaml.safe_load(again["experiment"])
    assert experiment["model"]["pathway"]["masking"] == "linear"
    assert experiment["train"]["learning_rate"] == 0.02


def test_the_search_has_seen_what_ended(config):
    records = [record(0, 0.2), record(1, 0.5, "stopped"), record(2, 0.9, "failed"), record(3, 0.1, "running")]
    study = study_of(config, records)
    states = [(t.state.name, t.value) for t in study.trials]
    assert states == [("COMPLETE", 0.22), ("COMPLETE", 0.52), ("FAIL", None)]
    assert study.direction == optuna.study.StudyDirection.MAXIMIZE


def test_a_resumed_search_does_not_repeat_itself(config):
    first = [optuna_search(config, []).suggest(str(i))["values"] for i in range(1)]
    later = optuna_search(config, [record(0, 0.1)]).suggest("x")["values"]
    assert later["train.learning_rate"] != first[0]["train.learning_rate"]
    assert optuna_search(config, []).suggest("0")["values"] == first[0]  # seeded


def decisions(scheduler, number, values):
    """What a scheduler says to a trial's results, epoch by epoch."""
    trial, said = SimpleNamespace(trial_id=str(number)), []
    scheduler.on_trial_add(None, trial)
    for epoch, value in enumerate(values):
        result = {"cells_seen": EPOCH * (epoch + 1), "val_pearson_delta": value}
        said.append(scheduler.on_trial_result(None, trial, result))
        if said[-1] == "STOP":
            break
    return said


def test_halving_stops_the_worse_and_says_why(config):
    scheduler = Halving(config, EPOCH)
    assert decisions(scheduler, 0, [0.5, 0.6, 0.7]) == ["CONTINUE"] * 3
    assert decisions(scheduler, 1, [0.1, 0.9, 0.9]) == ["STOP"]
    assert decisions(scheduler, 2, [0.6, 0.65, 0.1]) == ["CONTINUE"] * 3  # the last epoch stops nobody
    assert list(scheduler.reasons) == ["1"]
    reason = scheduler.reasons["1"]
    assert "val_pearson_delta 0.1000 at 100 cells is below 0.3000" in reason
    assert "the threshold of 2 trials at 90 cells" in reason


def test_replayed_records_cut_as_the_trials_did(config):
    lived, replayed = Halving(config, EPOCH), Halving(config, EPOCH)
    for number, value in enumerate([0.5, 0.3, 0.4]):
        said = decisions(lived, number, [value + 0.01 * e for e in range(3)])
        stopped = str(number) in lived.reasons
        replayed.replay(record(number, value, "stopped" if stopped else "finished", epochs=len(said)))
    rungs = [[(m, sorted(v.values())) for m, v in s._brackets[0]._rungs] for s in (lived, replayed)]
    assert rungs[0] == rungs[1]
    assert decisions(lived, 9, [0.2]) == decisions(replayed, 9, [0.2]) == ["STOP"]


def test_smaller_is_better_for_distances(config):
    config = config.model_copy(update={"metric": "val_l2"})
    assert config.mode == "min"
    good, bad = record(0, 0.0), record(1, 0.0)
    good, bad = (
        r.model_copy(update={"curve": [{"epoch": 0, "cells_seen": 100.0, "val_l2": v}]})
        for r, v in ((good, 1.0), (bad, 2.0))
    )
    assert best_of([bad, good], config).number == 0
    scheduler = Halving(config, EPOCH)
    for trial, value in (("0", 1.0), ("1", 2.0)):
        scheduler.on_trial_add(None, SimpleNamespace(trial_id=trial))
        result = {"cells_seen": 100, "val_l2": value}
        said = scheduler.on_trial_result(None, SimpleNamespace(trial_id=trial), result)
    assert said == "STOP"
    assert "is above 1.5000" in scheduler.reasons["1"]


def test_the_best_is_a_finished_one(config):
    assert best_of([record(0, 0.9, "stopped"), record(1, 0.1)], config).number == 1
    assert best_of([record(0, 0.9, "stopped"), record(1, 0.1, "stopped")], config).number == 0
    assert best_of([record(0, 0.9, "failed", epochs=0)], config) is None


def test_importance_finds_what_matters(config):
    """The metric follows the learning rate alone; Optuna, asked directly, agrees."""
    kinds = ["hard", "linear", "soft", "none", "soft_log"]
    rates = [10 ** (-4.9 + 0.11 * i) for i in range(30)]
    records = [record(i, 0.02 * i, masking=kinds[i % 5], rate=rate) for i, rate in enumerate(rates)]
    shares = importances(records, config)
    assert next(iter(shares)) == "train.learning_rate"
    assert set(shares) == set(config.parameters) - {"model.pathway.d_embed"} | {"model.pathway.d_embed"}
    always = ["model.pathway.masking", "train.learning_rate"]
    direct = optuna.importance.get_param_importances(study_of(config, records), params=always)
    assert {key: shares[key] for key in always} == direct
    assert sum(direct.values()) == pytest.approx(1.0)
    assert importances(records[:1], config) == {}


def test_known_trials_come_first_and_a_resumed_sweep_goes_on_with_them(config):
    config = config.model_copy(update={"first": ["model.pathway.masking", "model.pathway.d_embed"]})
    points = config.points()
    search = optuna_search(config, [])
    asked = [search.suggest(str(i)) for i in range(len(points) + 1)]
    assert [each["number"] for each in asked] == list(range(len(points) + 1))
    for each, point in zip(asked, points, strict=False):
        assert each["values"].items() >= point.items()
    # trials 0 and 1 have begun, 1 is to go on; trial 2 was deleted, 3 has ended
    begun = [record(0, 0.1), record(1, 0.1, "running"), record(3, 0.1)]
    search = optuna_search(config, begun)
    numbers = [search.suggest(str(i))["number"] for i in range(len(points))]
    assert numbers == [1, 2, *range(4, len(points)), len(points), len(points) + 1]


def test_a_grid_asks_for_its_points_only(config):
    grid = {"search": "grid", "scheduler": None, "experiment": {"validation": {"every": 1}}, "derived": {}}
    choices = {"model.pathway.masking": {"choice": ["hard", "soft"]}, "seed": {"choice": [3, 4]}}
    config = SweepConfig.parse({**grid, "parameters": choices}, "grid")
    search = optuna_search(config, [])
    assert [search.suggest(str(i))["values"] for i in range(4)] == config.points()
    scheduler = TrainAll()
    assert decisions(scheduler, 0, [0.5, 0.1, 0.0]) == ["CONTINUE"] * 3
    assert scheduler.reasons == {}
