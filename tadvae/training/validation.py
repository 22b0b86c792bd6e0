"""Validation while training: predictions for perturbations that neither training nor the test has."""

from copy import deepcopy

import numpy as np
import pandas as pd

from tadvae.data.build_vocabulary import context_rows, interventions
from tadvae.data.group_means import group_means
from tadvae.data.reader import CellReader, load_controls
from tadvae.data.splits import ValidationConfig, validation_groups
from tadvae.data.views import views_of
from tadvae.data.vocabulary import Vocabulary
from tadvae.effects.model import EffectModel
from tadvae.evaluation.metrics import HIGHER_IS_BETTER, score_profiles
from tadvae.model.predictor import Predictor
from tadvae.nn.network import TADVAEModule
from tadvae.settings.experiment import ExperimentConfig
from tadvae.store.manifest import GROUP_KEYS
from tadvae.store.reader import Store

METRICS = ("pearson_delta", "l2", "rmse", "cosine_logfc")


class Patience:
    """Whether validation still gets better.

    Attributes
    ----------
    key
        Name of the score, such as ``val_pearson_delta``.
    scores
        Of all validations so far, the best the greatest.
    """

    def __init__(self, config: ValidationConfig) -> None:
        self.key = f"val_{config.metric}"
        self._sign = 1 if HIGHER_IS_BETTER[config.metric] else -1
        self._limit = config.patience
        self.scores: list[float] = []

    def add(self, scores: dict[str, float]) -> None:
        """Take in what a validation found; NaN is never better."""
        self.scores.append(float(np.nan_to_num(self._sign * scores[self.key], nan=-np.inf)))

    @property
    def best_is_last(self) -> bool:
        """Whether the last validation is better than all before."""
        *before, last = self.scores
        return last > max(before, default=-np.inf) or not before

    @property
    def over(self) -> bool:
        """Whether to stop."""
        if self._limit is None or not self.scores:
            return False
        return len(self.scores) - 1 - int(np.argmax(self.scores)) >= self._limit


class Validator:
    """Scores a network on the validation groups of a split; what it needs of the store is read once.

    Parameters
    ----------
    effects
        The run's regression of mean effects, if it has one: predictions are scored as the finished model
        would make them.
    """

    def __init__(
        self,
        store: Store,
        groups: pd.DataFrame,
        vocabulary: Vocabulary,
        config: ExperimentConfig,
        effects: EffectModel | None = None,
    ) -> None:
        self.vocabulary, self.config, self.effects = vocabulary, config, effects
        held = validation_groups(groups, store.control)
        bags = store.bags.reset_index(names="bag")
        own = bags.merge(held[GROUP_KEYS], on=GROUP_KEYS)["bag"]
        places = held[GROUP_KEYS[:2]].drop_duplicates()
        controls = bags[bags["perturbation"] == store.control].merge(places, on=GROUP_KEYS[:2])["bag"]
        reader = CellReader(store, views_of(store, vocabulary), config.split)
        self._means = group_means(reader, store.bags.loc[sorted({*own, *controls})]).mean
        control_bags = store.bags.loc[controls.sort_values()]
        self._controls = load_controls(reader, control_bags, config.validation.max_cells)
        self._control = store.control
        self._interventions = interventions(store, vocabulary)
        self._row = context_rows(store, vocabulary)

    def due(self, epoch: int) -> bool:
        """Whether the end of an epoch (counted from 0) is one to validate at."""
        every = self.config.validation.every
        return every is not None and ((epoch + 1) % every == 0 or epoch + 1 == self.config.train.epochs)

    def score(self, module: TADVAEModule) -> dict[str, float]:
        """``val_pearson_delta`` and the like: means over the validation groups, where the module is."""
        predictor = Predictor(deepcopy(module).eval(), self.vocabulary, self.config, self.effects)
        return {f"val_{name}": float(np.nanmean(found)) for name, found in self.scores(predictor).items()}

    def scores(self, predictor: Predictor) -> dict[str, np.ndarray]:
        """Metrics of every validation group, (n,) each."""
        values: dict[str, list[np.ndarray]] = {name: [] for name in METRICS}
        for (dataset, context), cells in self._controls.items():
            tested = [p for d, c, p in self._means if (d, c) == (dataset, context) and p != self._control]
            control = self._means[dataset, context, self._control]  # (G,)
            observed = np.stack([self._means[dataset, context, p] for p in tested])  # (M, G)
            asked, row = [self._interventions[p] for p in tested], self._row.get((dataset, context), -1)
            genes = self.vocabulary.datasets[dataset].genes
            profile = control.astype(np.float32)
            own = predictor.counterfactual(cells, genes, profile, dataset, asked, row)  # (M, n, G)
            change = own.mean(axis=1, dtype=np.float64) - cells.dense(genes).mean(axis=0, dtype=np.float64)
            effects = self.vocabulary.datasets[dataset].has_effects
            scores = score_profiles(control + change, observed, control, METRICS, effects=effects)
            for name, found in scores.items():
                values[name].append(found)
        return {name: np.concatenate(found) for name, found in values.items()}
