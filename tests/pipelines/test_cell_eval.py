"""What ``evaluate --cell-eval`` writes, with and without the package."""

import sys
import types

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from pipelines.cell_eval import CellEvalFolder, cell_eval_table
from tadvae.base.errors import UserError
from tadvae.cells.ragged import Cells
from tadvae.evaluation.answers import Answer
from tadvae.evaluation.baselines import Profiles
from tadvae.evaluation.questions import Question

GENES = ["ENSG1", "ENSG2", "ENSG3"]


def cells(values):
    """Dense rows as cells over genes 4, 5, 6 of a vocabulary."""
    values = np.asarray(values, np.float32)
    n = len(values)
    genes = np.tile(np.array([4, 5, 6]), n)
    return Cells(genes, values.ravel(), np.arange(n + 1) * 3, np.full(n, np.nan))


@pytest.fixture
def question():
    control = [[1.0, 2.0, 0.5], [1.5, 1.0, 0.5]]
    groups = pd.DataFrame({"dataset_name": "screen", "context_name": "line/1", "perturbation_name": ["KLF1"]})
    return Question(
        place=(0, 0),
        groups=groups.assign(perturbation=[3]),
        targets=[("KLF1",)],
        genes=np.array([4, 5, 6]),
        control=np.mean(control, axis=0),
        controls=cells(control),
        profiles=Profiles(
            np.mean(control, axis=0), [], np.empty((0, 3)), GENES, {"KLF1": "ENSG2", "TCR": None}
        ),
        observed=np.ones((1, 3)),
        cells=[cells(np.ones((3, 3)))],
        has_cells=True,
    )


@pytest.fixture
def answer():
    predicted = np.array([[[-0.2, 1.0, 2.0], [0.3, 0.0, 1.0]]], np.float32)
    return Answer(predicted.mean(axis=1), np.zeros((1, 3)), predicted, {})


def test_both_files_have_the_controls_and_one_name_per_perturbation(question, answer, tmp_path):
    pairs = CellEvalFolder(str(tmp_path / "out"))
    pairs.keep(question, answer)
    place = tmp_path / "out" / "0-screen_line_1"
    assert pairs.places == [place]
    real, predicted = (ad.read_h5ad(place / f"{name}.h5ad") for name in ("real", "pred"))
    assert real.var_names.tolist() == predicted.var_names.tolist() == ["ENSG1", "KLF1", "ENSG3"]
    assert real.obs["perturbation"].tolist() == ["control"] * 2 + ["KLF1"] * 3
    assert predicted.obs["perturbation"].tolist() == ["control"] * 2 + ["KLF1"] * 2
    controls = question.controls.dense(question.genes)
    assert np.array_equal(real.X[:2].toarray(), controls)
    assert np.array_equal(predicted.X[:2].toarray(), controls)
    assert np.array_equal(predicted.X[2:].toarray(), np.maximum(answer.cells[0], 0))


def test_without_cells_nothing_is_written(question, answer, tmp_path):
    pairs = CellEvalFolder(str(tmp_path / "out"))
    pairs.keep(Question(**(vars(question) | {"has_cells": False})), answer)
    assert not pairs.places
    assert not (tmp_path / "out").exists()


def test_without_the_package_the_command_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    pairs = CellEvalFolder(str(tmp_path / "out"))
    assert pairs.scores() is None
    assert "cell-eval run -ap pred.h5ad -ar real.h5ad --control-pert control" in pairs.how()


def test_scores_are_means_over_perturbations(question, answer, tmp_path, monkeypatch):
    """A stand-in of the package that answers as cell-eval 0.8.2 does."""
    asked = {}

    class Frame:
        def to_dicts(self):
            return [
                {"perturbation": "A", "mse": 0.2, "overlap_at_N": None},
                {"perturbation": "B", "mse": 0.4, "overlap_at_N": 1.0},
            ]

    class MetricsEvaluator:
        def __init__(self, **settings):
            asked.update(settings)

        def compute(self, **settings):
            return Frame(), None

    module = types.ModuleType("cell_eval")
    module.MetricsEvaluator = MetricsEvaluator
    monkeypatch.setitem(sys.modules, "cell_eval", module)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    pairs = CellEvalFolder(str(tmp_path / "out"))
    pairs.keep(question, answer)
    scores = pairs.scores()
    assert scores.loc["mse", "0-screen_line_1"] == pytest.approx(0.3)
    assert scores.loc["overlap_at_N", "0-screen_line_1"] == 1.0
    assert asked["control_pert"] == "control"
    assert asked["adata_real"].endswith("real.h5ad")
    assert cell_eval_table(scores).row_count == 2


@pytest.mark.parametrize("kind", ["full", "file", "url"])
def test_a_folder_that_is_not_new_is_refused(kind, tmp_path):
    place = tmp_path / "out"
    if kind == "full":
        place.mkdir()
        (place / "x").touch()
    elif kind == "file":
        place.touch()
    with pytest.raises(UserError, match="--cell-eval"):
        CellEvalFolder("s3://bucket/out" if kind == "url" else str(place))
