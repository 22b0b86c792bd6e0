"""A model whose shifts no term of the loss depends on is refused before training."""

import numpy as np
import pandas as pd
import pytest
import torch

from tadvae.settings.experiment import ExperimentConfig
from tadvae.settings.presets import PRESETS
from tadvae.training.learner import build_module
from tadvae.training.prepare import prepare_training, shifts_out_of_reach

PROFILES = pd.DataFrame({"perturbation": [0, 1, 2], "n_cells": [1, 1, 1]})
CELLS = PROFILES.assign(n_cells=[9, 1, 2])


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets(name):
    config = PRESETS[name]()
    reason = shifts_out_of_reach(PROFILES, 0, config)
    assert (reason is None) == (config.loss.mean_match > 0) == (name in ("tadvae", "netactivity"))
    assert reason is None or "the MMD needs two or more cells" in reason
    assert shifts_out_of_reach(CELLS, 0, config) is None


def test_the_rule_is_general():
    def reason(bags, *settings):
        return shifts_out_of_reach(bags, 0, ExperimentConfig.load(None, settings))

    assert reason(PROFILES) is None
    assert reason(PROFILES, "loss.mean_match=0") is not None
    assert reason(PROFILES, "loss.mean_match=0", "effects.weight=1") is None  # no shift is ever used
    assert "loss.alpha and loss.mean_match are 0" in reason(CELLS, "loss.mean_match=0", "loss.alpha.high=0")
    assert reason(PROFILES.iloc[:1], "loss.mean_match=0") is None  # nothing is perturbed


def test_what_is_refused_has_no_gradient(small_vocabulary, small_batch, pack_small):
    """Bags of profiles without mean matching: the gradient of every shift is zero; with it, it is not."""
    profiles = type(small_batch)([bag for bag in small_batch.bags if bag.dataset == 1])
    batch = pack_small(profiles, torch.float32)
    for weight, reached in ((0.0, False), (1.0, True)):
        settings = [f"loss.mean_match={weight}", "model.pathway={d_embed: 8, n_heads: 2}"]
        config = ExperimentConfig.load(None, settings)
        module = build_module(config, small_vocabulary)
        module(batch, 60.0, torch.Generator().manual_seed(0))[0].backward()
        grad = module.causal.size.grad
        assert bool(np.any(grad.numpy() != 0)) == reached


def test_nothing_is_prepared(store, refused):
    sentence = refused(
        lambda: prepare_training(
            store, ExperimentConfig.load(None, ["loss.mean_match=0", "loss.alpha.high=0", "effects.weight=0"])
        )
    )
    assert "nothing in the data can teach this model what perturbations do" in sentence
