"""Standard errors of the mean profiles that one model predicts, where its regression knows its own.

The regression says that the effect of a perturbation has the mean f and the standard deviation s
(:mod:`tadvae.effects.errors`). The model predicts p, in which the network has a share. The root mean square
error of p is therefore, with the number n of control cells in training, of which m are kept::

    se² = s² + (p − f)² + variance (1/m − 1/n)

s contains the sampling error of the control mean that training compared with, which is not counted twice. For
the control itself, se² = variance / m. What the network does not know of its own error is not in it.
"""

from collections.abc import Callable, Sequence

import numpy as np

from tadvae.effects.model import EffectModel
from tadvae.model.predictor import Pairs
from tadvae.model.start import Start

Errors = Callable[[Sequence[Pairs], np.ndarray], np.ndarray]
"""Standard errors, (M, G), of the predicted mean profiles (M, G) under M perturbations."""


def standard_errors_at(
    start: Start, effects: EffectModel | None, n_kept: int | None
) -> tuple[Errors | None, str | None]:
    """What gives standard errors of mean profiles in a context, or why there are none.

    Parameters
    ----------
    start
        The context.
    n_kept
        Number of control cells that the mean starts from; None: the mean of all.
    """
    if effects is None:
        return None, "the model has no regression of mean effects (effects.weight=0)"
    observed = effects.observed
    if observed is None:
        return None, "the model is of a version that did not keep what its regression learned from"
    if start.row < 0:
        return None, "the error of the regression is not known for given control cells"
    if not (observed.conditions.context == start.row).any():
        return None, f"no perturbation of context '{start.context}' was in training"
    n_controls = max(effects.n_controls.get(start.row, 1), 1)
    variance = observed.variance[start.dataset]
    control, further = np.full(len(start.genes), np.nan), np.zeros(len(start.genes))
    if variance is not None:
        further = variance * max(1.0 / (n_kept or n_controls) - 1.0 / n_controls, 0.0)
        control = np.sqrt(variance / n_controls + further)

    def errors(perturbations: Sequence[Pairs], means: np.ndarray) -> np.ndarray:
        at = (start.dataset, start.row, perturbations, start.genes)
        result: np.ndarray = effects.standard_errors(*at)
        if np.isfinite(result).any():
            before = start.cells.dense(start.genes).mean(axis=0, dtype=np.float64)
            difference = means - before - effects.predict(*at, start.profile)
            result = np.sqrt(result**2 + difference**2 + further)
        result[[not pairs for pairs in perturbations]] = control
        return result

    return errors, None
