"""Inference on the device of the network: meta stands for a GPU, on which mixing devices is an error."""

import numpy as np
import pytest
import torch
from fake_device import DEVICE, FakeDevice

from tadvae.cells.ragged import Cells
from tadvae.model import device as device_module
from tadvae.model.device import chosen_device, device_of
from tadvae.model.encode import encode, project, smoothed_activities
from tadvae.model.new_cells import NewCells
from tadvae.model.predictor import Predictor
from tadvae.settings.experiment import ExperimentConfig
from tadvae.training.learner import build_module

SMALL = {"pathway": {"d_embed": 8, "n_heads": 2}, "causal": {"n_factors": 3, "hidden": 8}}
CELLS = Cells(np.array([0, 1, 2, 4, 5]), np.ones(5, np.float32), np.array([0, 2, 5]), np.full(2, 10.0))
GENES = np.arange(8)


@pytest.fixture
def elsewhere(monkeypatch):
    """Let a network compute on meta; its encoder only looks at where its input is. Returns what came back."""
    fetched = []

    def to_numpy(tensor):
        fetched.append(tensor.device.type)
        return np.zeros(tensor.shape, np.float32)

    for name in ("encode", "predictor"):
        monkeypatch.setattr(f"tadvae.model.{name}.to_numpy", to_numpy)

    def moved(module):
        def encoded(cells, available):
            places = {cells.values.device.type, cells.gene_ids.device.type, available.device.type}
            places |= {panel.device.type for panel in cells.panels} | {cells.panel.device.type}
            assert places == {"meta"}
            n_pathways, n_factors = module.factors.loadings.T.shape
            return tuple(
                torch.empty(cells.n_cells, n, device="meta") for n in (n_pathways, n_factors, n_factors)
            )

        module.to("meta").encode = encoded
        return module

    return moved, fetched


@pytest.mark.parametrize(
    "decoder", [{}, {"counterfactual": "mean"}, {"kind": "mlp", "decode": "direct", "counterfactual": "mean"}]
)
def test_predictions_stay_on_the_device(small_vocabulary, elsewhere, decoder):
    moved, fetched = elsewhere
    config = ExperimentConfig.parse({"model": SMALL | {"decoder": decoder}}, "test")
    predictor = Predictor(moved(build_module(config, small_vocabulary)), small_vocabulary, config)
    profile = np.zeros(len(GENES), np.float32)
    asked = [[(1, 0)], [], [(1, 1), (2, 1)]]
    assert predictor.counterfactual(CELLS, GENES, profile, 0, asked).shape == (3, 2, 8)
    assert predictor.means(CELLS, GENES, profile, 0, asked).shape == (3, 8)
    assert set(fetched) == {"meta"}


def test_activities_stay_on_the_device(small_vocabulary, elsewhere):
    moved, fetched = elsewhere
    module = moved(build_module(ExperimentConfig.parse({"model": SMALL}, "test"), small_vocabulary))
    available = np.ones(small_vocabulary.membership.n_pathways, bool)
    activity, latent = encode(module, NewCells(CELLS, GENES, available, 8, [f"G{g}" for g in GENES]))
    assert activity.shape == (2, len(available))
    assert latent.shape == (2, 3)
    assert fetched == ["meta", "meta"]
    assert device_of(module).type == "meta"


def test_smoothed_activities_stay_on_the_device(small_vocabulary):
    module = build_module(ExperimentConfig.parse({"model": SMALL}, "test"), small_vocabulary)
    available = np.ones(small_vocabulary.membership.n_pathways, bool)
    cells = NewCells(CELLS, GENES, available, 8, [f"G{g}" for g in GENES])
    smoothed = project(cells, 3)
    expected = smoothed_activities(module, cells, smoothed)
    with FakeDevice():
        found = smoothed_activities(module.to(DEVICE), cells, smoothed)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_gpu_that_is_not_there_is_a_sentence(monkeypatch, refused):
    assert chosen_device(False) == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    sentence = refused(chosen_device, True)
    assert sentence.startswith("--gpu: torch ")
    assert "leave out --gpu" in sentence
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert device_module.chosen_device(True) == torch.device("cuda", 1)
