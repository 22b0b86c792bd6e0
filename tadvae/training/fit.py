"""Training in one process, without Ray."""

from collections.abc import Iterable, Iterator
from copy import deepcopy

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from tadvae.cells.ragged import Cells
from tadvae.data.plan import Window
from tadvae.model.tadvae import TADVAE
from tadvae.settings.experiment import ExperimentConfig
from tadvae.store.reader import Store
from tadvae.training.checkpoint import Position
from tadvae.training.epochs import Observer, train_epochs
from tadvae.training.learner import Learner, build_module
from tadvae.training.prepare import prepare_training
from tadvae.training.training_set import TrainingSet
from tadvae.training.validation import Patience, Validator


class _KeepBest(Observer):
    """Keeps the weights of the best validation."""

    def __init__(self, learner: Learner, patience: Patience) -> None:
        self._learner, self._patience = learner, patience
        self.best: dict[str, Tensor] | None = None

    def epoch_done(self, position: Position, scores: dict[str, float] | None) -> None:
        if scores is not None and self._patience.best_is_last:
            self.best = deepcopy(self._learner.final.state_dict())


def fit(
    store: Store, config: ExperimentConfig, device: torch.device | str = "cpu"
) -> tuple[TADVAE, pd.DataFrame]:
    """Train in this process, without Ray and without a run's folder: for small stores, tests and studies.

    One thread of PyTorch is fastest for networks without an encoder (``torch.set_num_threads(1)``).

    Parameters
    ----------
    device
        Where to train; the model stays there.

    Returns
    -------
    The model, with control cells to predict from, and its split.
    """
    prepared = prepare_training(store, config)
    store, vocabulary = prepared.store, prepared.vocabulary
    data = TrainingSet(store, prepared.groups, vocabulary, config)
    module = build_module(config, vocabulary, prepared.start).to(device)
    learner = Learner(config, module, vocabulary=vocabulary)
    kept: dict[tuple[int, int, bytes], tuple[np.ndarray, Cells]] = {}

    def read(windows: Iterable[Window]) -> Iterator[tuple[np.ndarray, Cells]]:
        for window in windows:
            for shard, row_group, bag_ids in window.reads:
                key = (shard, row_group, bag_ids.tobytes())
                if key not in kept:
                    kept[key] = data.reader.read(shard, row_group, bag_ids)
                yield kept[key]

    patience, validator = Patience(config.validation), None
    if config.validation.patience is not None:
        validator = Validator(store, prepared.groups, vocabulary, config, prepared.effects)
    start, epochs = Position(), range(config.train.epochs)
    keeper = _KeepBest(learner, patience)
    train_epochs(
        learner,
        data,
        data.stream(start, epochs, read, device=device, degree=learner.module.pathway.edges.degree()),
        start,
        epochs,
        patience=patience,
        validator=validator,
        observer=keeper,
    )
    learner.module.load_state_dict(learner.final.state_dict() if keeper.best is None else keeper.best)
    model = TADVAE(learner.module, vocabulary, config, prepared.controls, prepared.effects)
    return model, prepared.groups
