"""What a model, or an ensemble of them, answers to a question of the evaluation."""

from dataclasses import dataclass

import numpy as np

from tadvae.ensemble import Ensemble
from tadvae.evaluation.questions import Question
from tadvae.model import TADVAE
from tadvae.prepare import interventions
from tadvae.store.reader import Store

Predictor = TADVAE | Ensemble


@dataclass(frozen=True)
class Answer:
    """Predictions for the M groups of a question.

    Attributes
    ----------
    mean
        Mean profiles, shape (M, G).
    spread
        Standard deviation of the members' means, shape (M, G); zero for one model.
    cells
        Predicted cells from the question's control cells, mean of the members, shape (M, n, G).
    abstained
        Groups for which the model has no answer of its own, with the reason. It answers there as if the
        unknown targets did nothing, or as in a context like those it knows.
    """

    mean: np.ndarray
    spread: np.ndarray
    cells: np.ndarray
    abstained: dict[str, str]


def answer(store: Store, model: Predictor, question: Question) -> Answer:
    """Predict every group of a question.

    The control cells are a sample; the change that they undergo is added to the mean of all of them.
    """
    dataset, context = question.place
    members = model.members if isinstance(model, Ensemble) else [model]
    pairs = interventions(store, model.vocabulary)
    names = {(entry.dataset, entry.name) for entry in model.vocabulary.contexts}
    asked, abstained = [], {}
    for p, name in zip(question.perturbations, question.groups["perturbation_name"], strict=True):
        reasons = {target: model.unknown(target) for target, _ in pairs[p]}
        asked.append([(t, m) for t, m in pairs[p] if reasons[t] is None])
        why = [f"{model.vocabulary.targets[t].name}: {r}" for t, r in reasons.items() if r is not None]
        if (dataset, store.manifest.contexts[context]) not in names:
            why.append("this context was never seen in training")
        if why:
            abstained[f"{question.where}: {name}"] = "; ".join(why)
    before = question.controls.dense(question.genes)  # (n, G)
    total = np.zeros((len(asked), *before.shape), np.float32)  # (M, n, G)
    means = []
    for member in members:
        cells = member.counterfactual(
            question.controls, question.genes, question.control.astype(np.float32), dataset, asked
        )
        total += cells / np.float32(len(members))
        means.append(
            question.control + cells.mean(axis=1, dtype=np.float64) - before.mean(axis=0, dtype=np.float64)
        )
    stacked = np.stack(means)  # (S, M, G)
    spread = stacked.std(axis=0, ddof=1) if len(members) > 1 else np.zeros(stacked.shape[1:])
    return Answer(stacked.mean(axis=0), spread, total, abstained)
