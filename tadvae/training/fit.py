"""Training in one process, without Ray."""

from copy import deepcopy

import numpy as np
import pandas as pd

from tadvae.cells.ragged import Cells
from tadvae.model.tadvae import TADVAE
from tadvae.settings.experiment import ExperimentConfig
from tadvae.store.reader import Store
from tadvae.training.learner import Learner, build_module
from tadvae.training.prepare import prepare_training
from tadvae.training.training_set import TrainingSet
from tadvae.training.validation import Patience, Validator


def fit(store: Store, config: ExperimentConfig) -> tuple[TADVAE, pd.DataFrame]:
    """Train in this process, without Ray and without a run's folder: for small stores, tests and studies.

    Returns
    -------
    The model, with control cells to predict from, and its split.
    """
    prepared = prepare_training(store, config)
    data = TrainingSet(store, prepared.groups, prepared.vocabulary, config)
    learner = Learner(config, build_module(config, prepared.vocabulary))
    kept: dict[tuple[int, int, bytes], tuple[np.ndarray, Cells]] = {}

    def read(shard: int, row_group: int, bag_ids: np.ndarray) -> tuple[np.ndarray, Cells]:
        key = (shard, row_group, bag_ids.tobytes())
        if key not in kept:
            kept[key] = data.reader.read(shard, row_group, bag_ids)
        return kept[key]

    patience, validator, best = Patience(config.validation), None, None
    if config.validation.patience is not None:
        validator = Validator(store, prepared.groups, prepared.vocabulary, config, prepared.effects)
    number, n_steps = 0, data.n_steps()
    for epoch in range(config.train.epochs):
        windows = data.windows(epoch)
        reads = (read(*each) for window in windows for each in window.reads)
        for step, (batch, _) in enumerate(data.batches(windows, reads, epoch)):
            learner.step(batch, epoch + step / n_steps, rank=0, number=number)
            number += 1
        if validator is not None and validator.due(epoch):
            patience.add(validator.score(learner.final))
            if patience.best_is_last:
                best = deepcopy(learner.final.state_dict())
            if patience.over:
                break
    learner.module.load_state_dict(learner.final.state_dict() if best is None else best)
    return TADVAE(
        learner.module, prepared.vocabulary, config, prepared.controls, prepared.effects
    ), prepared.groups
