"""The baseline of doses: a line between the tested doses of the same perturbation.

It is not in ``BASELINES``, which know no doses; the evaluation adds it where perturbations have doses or
times.
"""

import numpy as np

from tadvae.evaluation.baselines import Array, Baseline, Perturbation, Profiles, perturbation_key


class DoseInterpolation(Baseline):
    """Linear interpolation between the two neighbouring doses of training, over the logarithm of the dose.

    Beyond the tested doses the effect is that of the nearest one. Of a perturbation tested at several times,
    the doses of the nearest time are used; without doses, the line is over the logarithm of time. A
    combination that is not in training is the sum of its targets at the dose, and a target that is not in
    training has the mean effect.

    Source: this project.
    """

    name = "dose_interpolation"

    @classmethod
    def applies(cls, profiles: Profiles) -> bool:
        """Whether any training condition has a dose or a time."""
        return profiles.amounts is not None and bool(np.isfinite(profiles.amounts).any())

    def _fit(self, profiles: Profiles) -> None:
        amounts = np.full((len(profiles.targets), 2), np.nan)
        if profiles.amounts is not None:
            amounts = profiles.amounts
        rows: dict[Perturbation, list[int]] = {}
        for i, targets in enumerate(profiles.targets):
            rows.setdefault(perturbation_key(targets), []).append(i)
        self._series = {
            key: (amounts[chosen], profiles.means[chosen] - profiles.control) for key, chosen in rows.items()
        }  # (n, 2) and (n, G) of each perturbation

    def _delta_at(self, key: Perturbation, amounts: Array) -> Array:
        if key in self._series:
            return interpolate(*self._series[key], amounts)
        singles = [self._series.get((target,)) for target in key]
        parts = [self.mean_delta if each is None else interpolate(*each, amounts) for each in singles]
        total: Array = np.sum(parts, axis=0)
        return total

    def _delta(self, key: Perturbation) -> Array:
        return self._delta_at(key, np.array([np.nan, np.nan]))


def interpolate(amounts: Array, effects: Array, wanted: Array) -> Array:
    """Effect (G,) at one dose and time, from effects (n, G) at ``amounts`` (n, 2), all as logarithms.

    An amount that is NaN in ``wanted``, or in all of ``amounts``, is not compared.
    """
    along = 0 if np.isfinite(wanted[0]) and np.isfinite(amounts[:, 0]).any() else 1
    other = amounts[:, 1 - along]
    if np.isfinite(wanted[1 - along]) and np.isfinite(other).any():
        distance = np.abs(other - wanted[1 - along])
        near = distance <= np.nanmin(distance) + 1e-9
        amounts, effects = amounts[near], effects[near]
    at, known = amounts[:, along], np.isfinite(amounts[:, along])
    if not (known.any() and np.isfinite(wanted[along])):
        mean: Array = effects.mean(axis=0)
        return mean
    places, which = np.unique(at[known], return_inverse=True)
    n = len(places)
    means = np.stack([effects[known][which == i].mean(axis=0) for i in range(n)])  # (n, G)
    weight = np.interp(wanted[along], places, np.arange(n))
    low = int(min(weight, n - 1))
    high = min(low + 1, n - 1)
    result: Array = means[low] + (weight - low) * (means[high] - means[low])
    return result
