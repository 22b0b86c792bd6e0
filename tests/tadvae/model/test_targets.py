"""What is known of targets: by the network, and by the regression through pathways that they share."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np

from tadvae.model.predictor import Predictor
from tadvae.nn.losses import LossConfig
from tadvae.nn.network import ModelConfig, TADVAEModule
from tadvae.settings.experiment import ExperimentConfig


def predictor(vocabulary, similar):
    """With every target but the first unseen."""
    targets = [replace(target, seen=i == 0) for i, target in enumerate(vocabulary.targets)]
    vocabulary = replace(vocabulary, targets=targets)
    config = ExperimentConfig(
        model=ModelConfig(pathway={"d_embed": 8, "n_heads": 2}, causal={"n_factors": 2, "hidden": 4})
    )
    module = TADVAEModule(config.model, LossConfig(), vocabulary)
    return Predictor(module, vocabulary, config, similar and SimpleNamespace(similar=similar[0]))


def test_pathways_answer_for_a_target_that_was_never_perturbed(small_vocabulary):
    n = len(small_vocabulary.targets)
    assert n >= 3
    similar = np.eye(n)
    similar[0, 1] = similar[1, 0] = 0.5
    with_pathways = predictor(small_vocabulary, [similar])
    assert with_pathways.unknown(0) is None
    assert with_pathways.unknown(1) is None  # shares a pathway with target 0, which was perturbed
    assert with_pathways.unknown(2).endswith("and it shares no pathway with a target that was")
    assert with_pathways.unknown(n) is not None  # a gene that is no target
    assert with_pathways.known([[(0, 0)], [(1, 0)]]) == [[(0, 0)], []]  # the network does not know it
    for similar in (None, [None]):
        assert predictor(small_vocabulary, similar).unknown(1).endswith("knows targets by identity only")
