"""The folder of a run: what is written comes back, what is damaged or of another run is refused."""

import json

import numpy as np
import pandas as pd
import pytest
import yaml

from tadvae.base.checksums import SUMS
from tadvae.cells.ragged import Cells
from tadvae.model.run_folder import RunFolder
from tadvae.model.weights import CONFIG
from tadvae.settings.experiment import ExperimentConfig

ABOUT = {"store": "/store", "vocabulary_hash": "abc", "workers": 2, "bags": 7}


def cells(n):
    rng = np.random.default_rng(n)
    sizes = rng.integers(0, 5, n)
    genes = [np.sort(rng.choice(9, size, replace=False)) for size in sizes]
    return Cells(
        np.concatenate([*genes, np.empty(0, np.int64)]).astype(np.int64),
        rng.random(sizes.sum()).astype(np.float32),
        np.concatenate([[0], np.cumsum(sizes)]),
        rng.random(n),
    )


@pytest.fixture
def run(tmp_path):
    run = RunFolder(tmp_path / "run")
    split = pd.DataFrame({"dataset": [0, 0], "part": ["train", "test"]})
    run.begin(ExperimentConfig(seed=3), split, {0: cells(4), 2: cells(1)}, ABOUT)
    return run


def test_what_is_begun_comes_back(run):
    assert run.is_begun
    assert not run.is_finished
    assert not run.is_ensemble
    assert run.about() == ABOUT
    assert run.config() == ExperimentConfig(seed=3)
    assert run.split()["part"].tolist() == ["train", "test"]
    controls = run.controls()
    assert sorted(controls) == [0, 2]
    np.testing.assert_array_equal(controls[0].dense(np.arange(9)), cells(4).dense(np.arange(9)))
    assert run.members() == {"run": run}
    assert run.steps() == []


def test_a_folder_is_the_same_run_or_refused(run, refused, tmp_path):
    assert run.is_begun_with(ExperimentConfig(seed=3), "abc")
    for config, vocabulary in ((ExperimentConfig(seed=4), "abc"), (ExperimentConfig(seed=3), "other")):
        assert "run of other settings" in refused(run.is_begun_with, config, vocabulary)
    assert not RunFolder(tmp_path / "new").is_begun_with(ExperimentConfig(), "abc")
    (run.place / "run.json").delete()  # it was interrupted before it had begun
    assert not run.is_begun_with(ExperimentConfig(seed=3), "abc")
    assert "no run to resume" in refused(run.config_to_resume, "abc")


def test_a_run_of_an_earlier_version_goes_on(run, tmp_path):
    """It saved a setting that no longer exists; in a config of today the setting is refused."""
    place = run.place / CONFIG
    saved = yaml.safe_load(place.read_text())
    saved["stream"]["decode"] = "worker"
    place.write_text(yaml.safe_dump(saved))
    (run.place / SUMS).delete()  # earlier versions had none
    assert run.config_to_resume("abc") == ExperimentConfig(seed=3)
    assert run.is_begun_with(ExperimentConfig(seed=3), "abc")


def test_a_removed_setting_is_unknown_in_a_new_config(refused):
    sentence = refused(ExperimentConfig.load, None, ["stream.decode=worker"])
    assert "unknown setting 'stream.decode'" in sentence


def test_scores_are_kept_by_name(run):
    assert run.scores() is None
    table = pd.DataFrame({"method": ["tadvae"], "value": [0.5]})
    run.write_scores("all", table, {"summary": 1})
    pd.testing.assert_frame_equal(run.scores(), table)
    assert run.scores("combo") is None
    assert json.loads((run.place / "evaluation/all.json").read_text()) == {"summary": 1}


def test_an_ensemble_has_members_and_its_own_rules(tmp_path, refused):
    ensemble = RunFolder(tmp_path / "ensemble")
    assert "no ensemble to resume" in refused(ensemble.config_to_resume_ensemble, "abc")
    ensemble.begin_ensemble(ExperimentConfig(), {"members": ["members/seed-0"], "vocabulary_hash": "abc"})
    assert ensemble.is_ensemble
    assert {name: str(run) for name, run in ensemble.members().items()} == {
        "members/seed-0": f"{ensemble}/members/seed-0"
    }
    assert ensemble.config_to_resume_ensemble("abc") == ExperimentConfig()
    assert "another gene vocabulary" in refused(ensemble.config_to_resume_ensemble, "other")
    assert ensemble.calibration() is None


@pytest.mark.parametrize("text", ["", "{", "[1]", '"run"'])
def test_damaged_files_are_named(run, tmp_path, refused, text):
    (run.place / "run.json").write_text(text)
    assert "damaged run (run.json" in refused(run.about)
    ensemble = RunFolder(tmp_path / "ensemble")
    (ensemble.place / "ensemble.json").write_text(text)
    assert "damaged ensemble (ensemble.json" in refused(ensemble.ensemble)


@pytest.mark.parametrize("members", [None, [], "members", [1], {"a": 1}])
def test_an_ensemble_without_members_is_damaged(tmp_path, refused, members):
    ensemble = RunFolder(tmp_path)
    (ensemble.place / "ensemble.json").write_text(json.dumps({"members": members}))
    assert "no members" in refused(ensemble.members)


def test_a_model_without_its_run_is_refused(tmp_path, refused):
    assert "evaluate needs the run's folder" in refused(RunFolder(tmp_path).require_run, "evaluate")


@pytest.mark.parametrize(
    "member", ["../../victim", "/etc", "members/../../victim", "members/seed-0/..", "seed-0"]
)
def test_members_lie_in_their_ensemble(tmp_path, refused, member):
    (tmp_path / "ensemble.json").write_text(json.dumps({"members": ["members/seed-0", member]}))
    sentence = refused(RunFolder(tmp_path).members)
    assert "ensemble.json" in sentence
    assert "which is nothing inside of" in sentence


@pytest.mark.parametrize("name", ["../../victim", "..", "all", ""])
def test_only_a_checkpoint_is_deleted(run, refused, name):
    victim = run.place / "../victim"
    victim.make_folder()
    refused(run.checkpoints.delete, name)
    assert victim.exists()


@pytest.mark.parametrize("category", ["../config", "a/b", "/etc/x"])
def test_scores_lie_in_their_run(run, refused, category):
    refused(run.write_scores, category, pd.DataFrame({"value": [1.0]}), {})
