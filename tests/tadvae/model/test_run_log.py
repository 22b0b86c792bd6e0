"""The log of a run: pieces come back in order, are forgotten from a step on, and are refused if damaged."""

import numpy as np
import pandas as pd
import pytest

from tadvae.cells.ragged import Cells
from tadvae.model.run_folder import RunFolder
from tadvae.settings.experiment import ExperimentConfig


@pytest.fixture
def run(tmp_path):
    run = RunFolder(tmp_path / "run")
    split = pd.DataFrame({"dataset": [0], "part": ["train"]})
    control = Cells(np.array([2]), np.ones(1, np.float32), np.array([0, 1]), np.ones(1))
    about = {"store": "/store", "vocabulary_hash": "abc", "bags": 7}
    run.begin(ExperimentConfig(), split, {0: control}, about)
    return run


def test_the_log_forgets_what_is_made_again(run):
    assert run.forget_steps_from(0) is None  # there is no log yet
    run.write_steps([{"step": 0}, {"step": 1}])
    run.write_steps([{"step": 2}, {"step": 3}, {"step": 4}])
    run.write_bags([{"step": 2, "bags": [5]}], rank=1)
    assert list(run.log_pieces()) == ["steps-000000000.jsonl", "steps-000000002.jsonl"]
    assert [record["step"] for record in run.steps()] == [0, 1, 2, 3, 4]
    assert run.forget_steps_from(2) == 3
    assert [record["step"] for record in run.steps()] == [0, 1]
    assert [name for name in (run.place / "log").names() if name.startswith("bags-")] == []
    for _ in range(2):
        run.write_restart({"step": 2, "workers": 1})
    assert len([name for name in (run.place / "log").names() if name.startswith("restart-")]) == 2


def test_a_removed_run_is_not_made_again(run, refused):
    run.place.delete()
    sentence = refused(run.write_steps, [{"step": 0}])
    assert f"{run}: the run's folder" in sentence
    assert "was removed" in sentence
    assert not run.place.exists()


@pytest.mark.parametrize("text", ["{", "[1]", "{}", '{"step": "1"}', "[" * 50_000])
def test_a_damaged_log_is_refused(run, refused, text):
    run.write_steps([{"step": 0}])
    (run.place / "log/steps-000000000.jsonl").write_text(text + "\n")
    assert "steps-000000000.jsonl" in refused(run.steps)


def test_what_is_no_piece_of_the_log_is_left_alone(run):
    for name in ("steps-x.jsonl", "steps-.jsonl", "steps-1.txt", "bags-1-2-3.jsonl"):
        (run.place / f"log/{name}").write_text("mine")
    assert run.steps() == []
    assert run.forget_steps_from(0) is None
    assert len((run.place / "log").names()) == 4
