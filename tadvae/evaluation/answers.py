"""Predictions of a model or an ensemble for the held-out groups of an evaluation."""

from dataclasses import dataclass

import numpy as np

from tadvae.data.build_vocabulary import context_rows, interventions
from tadvae.evaluation.questions import Question
from tadvae.model.ensemble import Ensemble, Model, seed_spread
from tadvae.store.reader import Store


@dataclass(frozen=True)
class Answer:
    """Predictions for the M groups of a question.

    Attributes
    ----------
    mean
        Predicted mean profiles, log-normalised, shape (M, G).
    spread
        Standard deviation of the means over the members, shape (M, G); zero for a single model.
    cells
        Predicted cells, from the n control cells of the question, mean over the members, shape (M, n, G).
    abstained
        Groups for which the model has no specific prediction, with the reason; its prediction there is the
        mean effect of perturbations.
    """

    mean: np.ndarray
    spread: np.ndarray
    cells: np.ndarray
    abstained: dict[str, str]


def answer(store: Store, model: Model, question: Question) -> Answer:
    """Predict every group of a question.

    The control cells are a sample; their predicted change is added to the mean of all control cells.
    """
    dataset, _ = question.place
    members = model.members if isinstance(model, Ensemble) else [model]
    pairs = interventions(store, model.vocabulary)
    row = context_rows(store, model.vocabulary).get(question.place, -1)
    asked, abstained = [pairs[p] for p in question.perturbations], {}
    for p, name in zip(question.perturbations, question.groups["perturbation_name"], strict=True):
        reasons = {target: model.unknown(target) for target, *_ in pairs[p]}
        why = [f"{model.vocabulary.targets[t].name}: {r}" for t, r in reasons.items() if r is not None]
        if row < 0:
            why.append("this context was never seen in training")
        if why:
            abstained[f"{question.where}: {name}"] = "; ".join(why)
    before = question.controls.dense(question.genes)  # (n, G)
    total = np.zeros((len(asked), *before.shape), np.float32)  # (M, n, G)
    means = []
    for member in members:
        cells = member.counterfactual(
            question.controls, question.genes, question.control.astype(np.float32), dataset, asked, row
        )
        total += cells / np.float32(len(members))
        means.append(
            question.control + cells.mean(axis=1, dtype=np.float64) - before.mean(axis=0, dtype=np.float64)
        )
    stacked = np.stack(means)  # (S, M, G)
    return Answer(stacked.mean(axis=0), seed_spread(stacked), total, abstained)
