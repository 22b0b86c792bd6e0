"""Conditions of a store as arrays, and the covariance terms (kernels) between them.

A term says which conditions are expected to have similar effects. Each is a positive semi-definite matrix
between conditions; the regression learns one variance per term.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from tadvae.data.amounts import Pair
from tadvae.store.covariates import AMOUNTS

Floats = NDArray[np.float64]
N_AMOUNTS = len(AMOUNTS)
SLOPES = (0.5, 1.0, 1.5, 2.0)
"""Slopes of the Hill curves of :func:`curve_term`; those of most drugs are between these."""
MARGIN = 1.15
"""By how much, as a logarithm, half-maximal doses may lie beyond the doses of training: a factor of three."""
N_MIDPOINTS = 24


@dataclass(frozen=True)
class Conditions:
    """n conditions (dataset, context, perturbation).

    Attributes
    ----------
    dataset, context : (n,) int64
        Index of the dataset, and of the context in the vocabulary; negative: a context not in training.
    targets : (n, n_targets) int64
        +1 for a target that is activated, −1 for one that is silenced, 0 for one that is not perturbed.
    n_controls : (n,)
        Number of control cells in the context of the condition.
    amounts : (n, 2)
        Logarithms of dose and time; NaN: it has none.
    """

    dataset: np.ndarray
    context: np.ndarray
    targets: np.ndarray
    n_controls: np.ndarray
    amounts: np.ndarray = field(default_factory=lambda: np.empty((0, N_AMOUNTS)))

    def __post_init__(self) -> None:
        if len(self.amounts) != len(self.dataset):
            object.__setattr__(self, "amounts", np.full((len(self.dataset), N_AMOUNTS), np.nan))

    @property
    def has_amounts(self) -> np.ndarray:
        """Whether a condition has a dose or a time, bool, (n,)."""
        result: np.ndarray = np.isfinite(self.amounts).any(axis=1)
        return result

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, rows: np.ndarray) -> Self:
        """The conditions of some rows."""
        columns = (self.dataset, self.context, self.targets, self.n_controls, self.amounts)
        return type(self)(*(column[rows] for column in columns))

    def followed_by(self, others: Self) -> Self:
        """These conditions, whose targets are the first of more, and others."""
        more = others.targets.shape[1] - self.targets.shape[1]
        targets = np.pad(self.targets, ((0, 0), (0, more)))
        return type(self)(
            np.concatenate([self.dataset, others.dataset]),
            np.concatenate([self.context, others.context]),
            np.concatenate([targets, others.targets]),
            np.concatenate([self.n_controls, others.n_controls]),
            np.concatenate([self.amounts, others.amounts]),
        )

    @classmethod
    def of(
        cls,
        places: Sequence[tuple[int, int]],
        perturbations: Sequence[Sequence[Pair]],
        n_targets: int,
        signs: Sequence[int],
        n_controls: Mapping[int, int],
    ) -> Self:
        """Build conditions from (dataset, context) and (target, modality) pairs; repeated targets count once.

        Parameters
        ----------
        places
            Dataset and context of each condition.
        perturbations
            Pairs of each condition. Targets of ``n_targets`` and above (genes that no
            screen perturbed) have no covariance with other targets and are left out.
        n_targets
            Number of targets in the vocabulary.
        signs
            Sign of each modality.
        n_controls
            Number of control cells by context.
        """
        targets = np.zeros((len(places), n_targets), np.int64)
        amounts = np.full((len(places), N_AMOUNTS), np.nan)
        for i, pairs in enumerate(perturbations):
            for target, modality, *own in pairs:
                if own:
                    amounts[i] = own  # the same for all targets of a perturbation
                if target < n_targets:
                    targets[i, target] = -1 if signs[modality] < 0 else 1
        place = np.array(places, np.int64).reshape(-1, 2)
        controls = np.array([max(n_controls.get(c, 1), 1) for _, c in places])
        return cls(place[:, 0], place[:, 1], targets, controls, amounts)

    @property
    def size(self) -> np.ndarray:
        """Number of known targets, (n,)."""
        result: np.ndarray = np.abs(self.targets).sum(axis=1)
        return result


def same_place(a: Conditions, b: Conditions) -> Floats:
    """1 for pairs with the same dataset and context, else 0; (len(a), len(b))."""
    context = (a.context[:, None] == b.context[None]) & (a.context[:, None] >= 0)
    return _floats((a.dataset[:, None] == b.dataset[None]) & context)


def same_targets(a: Conditions, b: Conditions) -> Floats:
    """1 for pairs with the same, non-empty set of targets, else 0; (len(a), len(b))."""
    shared = _shared(a, b)
    return _floats((shared == a.size[:, None]) & (shared == b.size[None]) & (shared > 0))


def same_amounts(a: Conditions, b: Conditions) -> Floats:
    """1 for pairs with the same dose and time, also if both have none, else 0; (len(a), len(b))."""
    mine, theirs = a.amounts[:, None], b.amounts[None]
    equal = np.isclose(mine, theirs, rtol=0.0, atol=1e-6) | (np.isnan(mine) & np.isnan(theirs))
    return _floats(equal.all(axis=2))


def curve_term(a: Conditions, b: Conditions, training: Conditions | None = None) -> Floats:
    """Kernel of dose and time, (len(a), len(b)): the mean of ``h(d_a) h(d_b)`` over many Hill curves h.

    ``h(d) = d^n / (d^n + e^n)``, with slopes n of :data:`SLOPES` and half-maximal doses e that are spread
    evenly, on a log scale, over the doses of b; the kernels of dose and time are multiplied. It is the
    covariance of responses whose curves are not known but are Hill curves: they rise from zero, and saturate
    below and above the doses of b. A condition without a dose has h = 1, the saturated response. The doses of
    ``training``, if it is given, count instead of those of b.
    """
    doses = (b if training is None else training).amounts
    result = np.ones((len(a), len(b)))
    for i in range(N_AMOUNTS):
        known = doses[:, i][np.isfinite(doses[:, i])]
        if not len(known):
            continue
        midpoints = np.linspace(known.min() - MARGIN, known.max() + MARGIN, N_MIDPOINTS)
        mine, theirs = (
            np.stack(
                [
                    np.where(np.isnan(logs), 1.0, expit(slope * (np.nan_to_num(logs) - midpoint)))
                    for slope in SLOPES
                    for midpoint in midpoints
                ],
                axis=1,
            )
            for logs in (a.amounts[:, i], b.amounts[:, i])
        )  # (n, n_curves)
        result *= mine @ theirs.T / mine.shape[1]
    return result


def single_terms(
    a: Conditions, b: Conditions, similar: Floats | None = None, training: Conditions | None = None
) -> list[Floats]:
    """Covariance terms of single perturbations, each (len(a), len(b)).

    In order: all pairs; same dataset; same context; same target in any dataset; the same, with its sign; same
    target and dataset; same context, by the sampling error of the control cells that both are compared with;
    similar targets in the same context, with their signs (only with ``similar``); where conditions of b have
    a dose or a time, by :func:`curve_term`: all pairs of a context, the same target there, and the same
    target with its sign in any dataset; same condition.

    Parameters
    ----------
    similar : (n_targets, n_targets) or None
        Similarity of targets, positive semi-definite.
    training
        Conditions of training, whose doses :func:`curve_term` reads; None: b.
    """
    training = b if training is None else training
    place, same = same_place(a, b), same_targets(a, b)
    dataset = _floats(a.dataset[:, None] == b.dataset[None])
    signed = same * np.sign(_products(a.targets, b.targets))
    controls = place / np.sqrt(np.outer(a.n_controls, b.n_controls))
    terms = [np.ones_like(place), dataset, place, same, signed, same * dataset, controls]
    if similar is not None:
        terms.append(place * (a.targets @ similar @ b.targets.T))
    if training.has_amounts.any():
        curve = curve_term(a, b, training)
        terms += [place * curve, same * place * curve, signed * curve]
    return [*terms, same * place * same_amounts(a, b)]


def combination_terms(
    a: Conditions, b: Conditions, near: Floats, training: Conditions | None = None
) -> list[Floats]:
    """Covariance terms of the effects of combinations beyond the scaled sum of their parts.

    In order: same context; same context and similar sums; same context and shared targets; same combination
    in any context; where conditions of b have a dose or a time, the same combination in the same context by
    :func:`curve_term`; same condition.

    Parameters
    ----------
    near : (len(a), len(b))
        Similarity of the sums, from :func:`nearness`.
    training
        Conditions of training, whose doses :func:`curve_term` reads; None: b.
    """
    training = b if training is None else training
    # Elementwise products of positive semi-definite matrices are positive semi-definite (Schur), so every
    # term stays a valid covariance.
    place, same = same_place(a, b), same_targets(a, b)
    size = np.sqrt(np.maximum(a.size, 1)[:, None] * np.maximum(b.size, 1)[None])
    terms = [place, near * place, place * _shared(a, b) / size, same]
    if training.has_amounts.any():
        terms.append(same * place * curve_term(a, b, training))
    return [*terms, same * place * same_amounts(a, b)]


def of_themselves(
    terms: Callable[[Conditions], list[Floats]], conditions: Conditions, at_once: int = 32
) -> list[Floats]:
    """Covariance terms of each of q conditions with itself, n_terms of (q,).

    Parameters
    ----------
    terms
        Covariance terms between some conditions, (m, m).
    conditions
        The q conditions.
    at_once
        Largest m.
    """
    parts = [
        np.stack(
            [term.diagonal() for term in terms(conditions[np.arange(i, min(i + at_once, len(conditions)))])]
        )
        for i in range(0, len(conditions), at_once)
    ]
    return list(np.concatenate(parts, axis=1))


def nearness(a: Floats, b: Floats, spread: Floats) -> Floats:
    """RBF kernel ``exp(−‖a_i − b_j‖² / spread_j)`` of sums (n, G) and (m, G); ``spread`` has shape (m,)."""
    return np.exp(-squared_distances(a, b) / spread[None])


def squared_distances(a: Floats, b: Floats) -> Floats:
    """Squared distances ``‖a_i − b_j‖²`` of rows, (n, m)."""
    # By one matrix product: differences of all rows would need (n, m, G) memory. Rounding can make the
    # distance of equal rows slightly negative.
    result: Floats = np.maximum((a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T, 0.0)
    return result


def _shared(a: Conditions, b: Conditions) -> Floats:
    return _products(np.abs(a.targets), np.abs(b.targets))


def _products(a: np.ndarray, b: np.ndarray) -> Floats:
    """Inner products of rows of whole numbers (n, n_targets) and (m, n_targets): exact, (n, m)."""
    # As floats, because BLAS has no whole numbers; only the columns in use, because few targets are asked.
    used = np.flatnonzero(a.any(axis=0))
    return a[:, used].astype(np.float64) @ b[:, used].astype(np.float64).T


def _floats(mask: np.ndarray) -> Floats:
    return mask.astype(np.float64)
