"""Conditions of a store as numbers, and how alike two of them are.

The terms below are the model's knowledge of what makes two effects alike. Each is a positive semi-definite
matrix between conditions; a regression gives each its own variance.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Conditions:
    """n conditions (dataset, context, perturbation).

    Attributes
    ----------
    dataset, context : (n,) int64
        ``context`` is a row of the vocabulary's contexts; negative: one that training has not seen.
    targets : (n, n_targets) int64
        +1 for a target that is activated, −1 for one that is silenced, 0 for one that is left alone.
    n_controls : (n,)
        Control cells of their context.
    """

    dataset: np.ndarray
    context: np.ndarray
    targets: np.ndarray
    n_controls: np.ndarray

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, rows: np.ndarray) -> Self:
        """Some of them."""
        return type(self)(self.dataset[rows], self.context[rows], self.targets[rows], self.n_controls[rows])

    @classmethod
    def of(
        cls,
        places: Sequence[tuple[int, int]],
        perturbations: Sequence[Sequence[tuple[int, int]]],
        n_targets: int,
        signs: Sequence[int],
        n_controls: Mapping[int, int],
    ) -> Self:
        """From (dataset, context) pairs and (target, modality) pairs; a target twice is there once.

        ``n_controls`` goes by context.

        Targets of ``n_targets`` and above (genes that no screen targeted) are like no other.
        """
        targets = np.zeros((len(places), n_targets), np.int64)
        for i, pairs in enumerate(perturbations):
            for target, modality in pairs:
                if target < n_targets:
                    targets[i, target] = -1 if signs[modality] < 0 else 1
        place = np.array(places, np.int64).reshape(-1, 2)
        controls = np.array([max(n_controls.get(c, 1), 1) for _, c in places])
        return cls(place[:, 0], place[:, 1], targets, controls)

    @property
    def size(self) -> np.ndarray:
        """Number of known targets, (n,)."""
        result: np.ndarray = np.abs(self.targets).sum(axis=1)
        return result


def same_place(a: Conditions, b: Conditions) -> Floats:
    """1 where dataset and context are the same, (len(a), len(b))."""
    context = (a.context[:, None] == b.context[None]) & (a.context[:, None] >= 0)
    return _floats((a.dataset[:, None] == b.dataset[None]) & context)


def same_targets(a: Conditions, b: Conditions) -> Floats:
    """1 where all targets are the same and there are any, (len(a), len(b))."""
    shared = _shared(a, b)
    return _floats((shared == a.size[:, None]) & (shared == b.size[None]) & (shared > 0))


def single_terms(a: Conditions, b: Conditions) -> list[Floats]:
    """Likeness of single perturbations.

    In order: any two; two of a dataset; two of a context; the same target anywhere; anywhere, with its
    sign; in the dataset; two of a context by the sampling error of the controls that both are compared with;
    the condition itself.
    """
    place, same = same_place(a, b), same_targets(a, b)
    dataset = _floats(a.dataset[:, None] == b.dataset[None])
    signed = same * np.sign(a.targets @ b.targets.T)
    controls = place / np.sqrt(np.outer(a.n_controls, b.n_controls))
    return [np.ones_like(place), dataset, place, same, signed, same * dataset, controls, same * place]


def combination_terms(a: Conditions, b: Conditions, near: Floats) -> list[Floats]:
    """Likeness of what combinations do beyond the scaled sum of their parts.

    In order: two of a context; two whose sums are close; that share targets; the same combination in any
    context; the condition itself.

    Parameters
    ----------
    near : (len(a), len(b))
        From :func:`nearness`.
    """
    place, same = same_place(a, b), same_targets(a, b)
    size = np.sqrt(np.maximum(a.size, 1)[:, None] * np.maximum(b.size, 1)[None])
    return [place, near * place, place * _shared(a, b) / size, same, same * place]


def nearness(a: Floats, b: Floats, spread: Floats) -> Floats:
    """``exp(−‖a_i − b_j‖² / spread_j)`` of sums of effects (n, G) and (m, G), with ``spread`` (m,)."""
    return np.exp(-squared_distances(a, b) / spread[None])


def squared_distances(a: Floats, b: Floats) -> Floats:
    """``‖a_i − b_j‖²`` of rows, (n, m)."""
    result: Floats = np.maximum((a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T, 0.0)
    return result


def _shared(a: Conditions, b: Conditions) -> np.ndarray:
    result: np.ndarray = np.abs(a.targets) @ np.abs(b.targets).T
    return result


def _floats(mask: np.ndarray) -> Floats:
    return mask.astype(np.float64)
