"""Simple baselines: predictions of mean profiles without a neural network.

Every baseline works within ONE (dataset, context), on mean log-normalised profiles, and predicts any
number of targets. A perturbation is a set of targets: order and repetition do not matter. A new
baseline is one class with ``@register``; the evaluation, the report and ``fit_all`` then use it.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Perturbation = tuple[str, ...]


@dataclass(frozen=True)
class Profiles:
    """Mean profiles of one (dataset, context): the training data of every baseline.

    Parameters
    ----------
    control
        Shape (G,): mean log-normalised expression of the control cells.
    targets
        N perturbations, one tuple of target names per training condition.
    means
        Shape (N, G): mean log-normalised expression of each training condition.
    genes
        G gene keys, one per column, each once.
    target_gene
        Target name -> key of its gene; None, absent or not in ``genes`` when it is not measured.
    elsewhere
        Training profiles of other contexts, each on its own genes; for baselines of contexts.
    new_context
        Whether no perturbation of this context is in training; ``means`` then come from other contexts.
    amounts
        Shape (N, 2): logarithms of dose and time of each training condition, NaN where it has none; None: no
        condition has one.

    Raises
    ------
    ValueError
        Shapes that do not fit, a repeated gene key, a condition without targets, a value that is NaN
        or infinite.
    """

    control: Array
    targets: Sequence[Perturbation]
    means: Array
    genes: Sequence[str]
    target_gene: Mapping[str, str | None] = field(default_factory=dict)
    elsewhere: Sequence["Profiles"] = ()
    new_context: bool = False
    amounts: Array | None = None

    def __post_init__(self) -> None:
        control = np.asarray(self.control, dtype=np.float64)  # (G,)
        means = np.asarray(self.means, dtype=np.float64)  # (N, G)
        if means.size == 0 and not self.targets:
            means = means.reshape(0, control.size)
        if control.ndim != 1 or means.shape != (len(self.targets), control.size):
            raise ValueError(
                f"means: expected shape ({len(self.targets)}, {control.size}) for {len(self.targets)} "
                f"conditions and a control of shape {control.shape}, got {means.shape}."
            )
        if self.amounts is not None and self.amounts.shape != (len(self.targets), 2):
            raise ValueError(f"amounts: expected shape ({len(self.targets)}, 2), got {self.amounts.shape}.")
        if not control.size:
            raise ValueError("profiles: no genes.")
        if len(self.genes) != control.size or len(set(self.genes)) != control.size:
            raise ValueError(
                f"genes: expected {control.size} different keys, got {len(self.genes)} "
                f"({len(set(self.genes))} different)."
            )
        if not (np.isfinite(control).all() and np.isfinite(means).all()):
            raise ValueError("profiles: NaN or infinite values; drop those conditions or genes first.")
        if not all(perturbation_key(targets) for targets in self.targets):
            raise ValueError("targets: a training condition needs a target; controls go into `control`.")
        object.__setattr__(self, "control", control)
        object.__setattr__(self, "means", means)


def perturbation_key(targets: Iterable[str]) -> Perturbation:
    """Return a unique key of a perturbation: its different targets, sorted.

    Examples
    --------
    >>> perturbation_key(("KLF1", "BAK1", "KLF1"))
    ('BAK1', 'KLF1')
    """
    if isinstance(targets, str):
        raise ValueError(f"expected a tuple of target names, got the string {targets!r}.")
    return tuple(sorted(set(targets)))


def changes(profiles: Profiles) -> dict[Perturbation, Array]:
    """Change from the control of every training condition, each (G,); equal sets of targets are averaged."""
    rows: dict[Perturbation, list[Array]] = {}
    for targets, mean in zip(profiles.targets, profiles.means, strict=True):
        rows.setdefault(perturbation_key(targets), []).append(mean)
    # Sorted, so that the rounding of sums does not depend on the order of the conditions.
    return {key: np.mean(rows[key], axis=0) - profiles.control for key in sorted(rows)}


class Baseline(ABC):
    """One predictor: ``fit`` on training profiles, ``predict`` for any perturbations.

    Subclasses set ``name`` and predict differences from the control ("deltas"). Training conditions
    with the same set of targets are averaged first.
    """

    name: ClassVar[str]
    control: Array  # (G,)
    deltas: dict[Perturbation, Array]  # training conditions, each (G,)
    mean_delta: Array  # (G,): the mean of ``deltas``, zero without any

    @classmethod
    def applies(cls, profiles: Profiles) -> bool:
        """Whether the baseline is of use for these profiles; the evaluation leaves it out where it is not."""
        del profiles
        return True

    def fit(self, profiles: Profiles) -> Self:
        """Fit to the training conditions; without any, every prediction is the control."""
        self.control = profiles.control
        self.deltas = changes(profiles)
        self.mean_delta = np.mean(list(self.deltas.values()) or [np.zeros_like(self.control)], axis=0)
        self._fit(profiles)
        return self

    def predict(self, targets: Sequence[Perturbation], amounts: Array | None = None) -> Array:
        """Predict mean profiles.

        Parameters
        ----------
        targets
            M perturbations; an empty tuple is the control.
        amounts
            Shape (M, 2): logarithms of their dose and time, NaN without one, for baselines that know doses;
            None: no perturbation has one.

        Returns
        -------
        Array
            Shape (M, G), in the units of the training profiles (log-normalised expression). A sum
            of effects may leave the range of real expression (below 0); it is not clipped.
        """
        if not hasattr(self, "deltas"):
            raise RuntimeError(f"baseline {self.name}: call fit before predict.")
        amounts = np.full((len(targets), 2), np.nan) if amounts is None else amounts
        result = np.tile(self.control, (len(targets), 1))  # (M, G)
        for row, perturbation, wanted in zip(result, targets, amounts, strict=True):
            if key := perturbation_key(perturbation):
                row += self._delta_at(key, wanted)
        return result

    def _fit(self, profiles: Profiles) -> None:
        """Prepare what ``_delta`` needs; the attributes of the class are already set."""
        del profiles

    def _delta_at(self, key: Perturbation, amounts: Array) -> Array:
        """The same at a dose and a time, (2,); most baselines do not know them."""
        del amounts
        return self._delta(key)

    @abstractmethod
    def _delta(self, key: Perturbation) -> Array:
        """Difference from the control, shape (G,), for a key with at least one target."""


BASELINES: dict[str, type[Baseline]] = {}


def register(cls: type[Baseline]) -> type[Baseline]:
    """Add a baseline to ``BASELINES`` under its name."""
    BASELINES[cls.name] = cls
    return cls


def fit_all(profiles: Profiles, names: Iterable[str] | None = None) -> dict[str, Baseline]:
    """Fit the named baselines (default: every registered one), in the registry's order."""
    return {name: BASELINES[name]().fit(profiles) for name in (BASELINES if names is None else names)}


@register
class NoChange(Baseline):
    """The control profile, for every perturbation."""

    name = "no_change"

    def _delta(self, key: Perturbation) -> Array:
        return np.zeros_like(self.control)


@register
class TrainingMean(Baseline):
    """The mean of the training conditions' mean profiles, for every perturbation.

    Source: the "non-control mean" of Systema (Viñas Torné et al. 2025) and the mean baseline of
    Ahlmann-Eltze et al. (2025). Systema pools cells; here each condition counts once.
    """

    name = "mean"

    def _delta(self, key: Perturbation) -> Array:
        return self.mean_delta


@register
class MatchingMean(Baseline):
    """The mean of the training profiles that match the targets.

    For A+B: the mean of the profiles of the single conditions A and B, where a missing single is
    replaced by the training mean (Systema, Viñas Torné et al. 2025). If no single is known, the mean
    of all training conditions that contain A or B; if there is none, the training mean.
    """

    name = "matching_mean"

    def _delta(self, key: Perturbation) -> Array:
        singles = [self.deltas.get((target,)) for target in key]
        if any(one is not None for one in singles):
            result: Array = np.mean([self.mean_delta if one is None else one for one in singles], axis=0)
            return result
        related = [delta for other, delta in self.deltas.items() if set(other) & set(key)]
        return np.mean(related, axis=0) if related else self.mean_delta


@register
class Additive(Baseline):
    """Control + the sum of the single effects (Ahlmann-Eltze et al. 2025).

    A target without a single condition in training contributes the mean single delta; without any
    single in training, the mean over the combinations of (delta / number of targets).
    """

    name = "additive"

    def _fit(self, profiles: Profiles) -> None:
        singles = [delta for key, delta in self.deltas.items() if len(key) == 1]
        shares = singles or [delta / len(key) for key, delta in self.deltas.items()]
        self._unknown = np.mean(shares, axis=0) if shares else np.zeros_like(self.control)  # (G,)

    def _delta(self, key: Perturbation) -> Array:
        return self._sum(key)

    def _sum(self, key: Perturbation) -> Array:
        result: Array = np.sum([self.deltas.get((target,), self._unknown) for target in key], axis=0)  # (G,)
        return result


@register
class AdditiveRidge(Additive):
    r"""The additive prediction, calibrated on the training combinations.

    With a = the sum of the single deltas, ȳ and ā the means of combination deltas and of their sums
    over the n training combinations whose singles are all known (Y, A: (n, G)):

    .. math:: \hat y = \bar y + s\,(a - \bar a) + (a - \bar a) W, \qquad
              W = A_c^\top (A_c A_c^\top + \lambda I)^{-1} (Y_c - s A_c)

    that is a global scale ``s``, a gene-wise bias ȳ - sā, and a correction of rank below n: the ridge
    regression of the residuals on the sums (equally, on all their principal-component scores; a
    small component is shrunk away, so no rank has to be chosen). ``a`` is symmetric in the
    targets and defined for any number of them.

    ``s`` and λ minimise the squared leave-one-out error over the training combinations. For a given
    λ the left-out residuals have a closed form and are linear in ``s``, whose best value is then a
    ratio of two sums; λ runs over ``PENALTIES`` times the mean squared norm of the centred sums.
    λ = ∞ is scale and bias alone, and plain addition is a candidate too, so the fit falls back to it
    when nothing does better, and always below ``MIN_COMBINATIONS``. A seen single is predicted by its
    own profile, an unseen one by the mean single delta, as in ``additive``. After ``fit``, ``scale``
    is s and ``penalty`` λ (squared log-expression; ``inf``: no correction).

    Source: this project; ridge leave-one-out: Hastie, Tibshirani and Friedman (2009), section 7.10.
    """

    name = "additive_ridge"
    MIN_COMBINATIONS: ClassVar[int] = 4
    PENALTIES: ClassVar[tuple[float, ...]] = tuple(10.0 ** (k / 4) for k in range(8, -13, -1))

    def _fit(self, profiles: Profiles) -> None:
        super()._fit(profiles)
        self.scale, self.penalty = 1.0, np.inf
        self._centre = self._level = np.zeros_like(self.control)  # (G,): ā and ȳ
        self._left = self._right = np.zeros((0, self.control.size))  # (n, G): W = leftᵀ right
        known = [key for key in self.deltas if len(key) > 1 and all((t,) in self.deltas for t in key)]
        if len(known) < self.MIN_COMBINATIONS:
            return
        sums = np.stack([self._sum(key) for key in known])  # (n, G)
        observed = np.stack([self.deltas[key] for key in known])  # (n, G)
        centre, level = sums.mean(axis=0), observed.mean(axis=0)  # (G,), (G,)
        left, right = sums - centre, observed - level  # (n, G), (n, G)
        if np.sum(left**2) <= 1e-24 * np.sum(sums**2):
            left = np.zeros_like(left)  # all sums are equal: only a bias can be learned
        values, vectors = np.linalg.eigh(left @ left.T)  # (n,), (n, n)
        values = np.clip(values, 0.0, None)
        hats = self._hats(values, vectors)
        chosen = self._choose(hats, left, right, error=float(np.sum((observed - sums) ** 2)))
        if chosen is None:
            return
        self.scale, self.penalty = chosen
        self._centre, self._level = centre, level
        if np.isfinite(self.penalty):
            self._left = left
            residual = right - self.scale * left  # (n, G)
            self._right = (vectors / (values + self.penalty)) @ (vectors.T @ residual)  # (n, G)

    def _hats(self, values: Array, vectors: Array) -> Iterator[tuple[float, Array]]:
        """Candidate penalties, each with its hat matrix (n, n): data -> fit, the bias included."""
        n, unit = len(values), float(values.mean())
        yield np.inf, np.full((n, n), 1.0 / n)
        for factor in self.PENALTIES if unit > 0.0 else ():
            penalty = factor * unit
            yield penalty, (vectors * (values / (values + penalty))) @ vectors.T + 1.0 / n

    @staticmethod
    def _choose(
        hats: Iterable[tuple[float, Array]], left: Array, right: Array, error: float
    ) -> tuple[float, float] | None:
        """Scale and penalty of the smallest leave-one-out error, or None if none is below ``error``.

        ``error`` is first that of plain addition, which has no fitted parameters, so that leaving out a
        condition does not change it.
        """
        gram_aa, gram_ay, gram_yy = left @ left.T, left @ right.T, right @ right.T  # (n, n)
        chosen = None
        for penalty, hat in hats:
            # Leave-one-out residual i of a linear smoother: its residual / (1 - hat_ii), without refitting.
            out = (np.eye(len(hat)) - hat) / (1.0 - np.diag(hat))[:, None]  # (n, n)
            aa, ay, yy = (float(np.sum((out @ gram) * out)) for gram in (gram_aa, gram_ay, gram_yy))
            scale = ay / aa if aa > 0.0 else 1.0
            left_out = yy - 2.0 * scale * ay + scale**2 * aa
            if left_out < error:
                error, chosen = left_out, (scale, penalty)
        return chosen

    def _delta(self, key: Perturbation) -> Array:
        total = self._sum(key)  # (G,)
        if len(key) == 1:
            return total
        moved = total - self._centre  # (G,)
        return self._level + self.scale * moved + (self._left @ moved) @ self._right


@register
class Linear(Baseline):
    """Y - b ≈ G W Pᵀ: a bilinear model that can extrapolate to unseen targets.

    Y (genes x conditions) holds the training deltas, b their mean over conditions, G the scores of
    the genes on the first ``COMPONENTS`` principal components of the training profiles (conditions
    and control as variables, genes as observations), and a row of P the row of G of the perturbed
    gene: summed over the targets of a combination, zero for a target that is not measured, which is
    therefore predicted by b, the training mean. The closed form is
    W = (GᵀG + λI)⁻¹ Gᵀ (Y - b) P (PᵀP + λI)⁻¹.

    Source: Ahlmann-Eltze, Huber and Anders (2025), Nature Methods 22, 1657. Their code also counts
    the control as a training condition of effect zero and drops conditions without a measured target
    from b; here b is the mean over all perturbed conditions.
    """

    name = "linear"
    COMPONENTS: ClassVar[int] = 10
    RIDGE: ClassVar[float] = 0.1

    def _fit(self, profiles: Profiles) -> None:
        column = {gene: index for index, gene in enumerate(profiles.genes)}
        self._row = {
            target: column[gene] for target, gene in profiles.target_gene.items() if gene in column
        }  # target -> row of G
        effects = np.reshape(list(self.deltas.values()), (-1, self.control.size))  # (N, G)
        expression = np.vstack([self.control, self.control + effects]).T  # (G, 1 + N)
        u, s, _ = np.linalg.svd(expression - expression.mean(axis=0), full_matrices=False)
        k = min(self.COMPONENTS, s.size)
        self._genes = u[:, :k] * s[:k]  # (G, k)
        embedding = np.reshape([self._embed(key) for key in self.deltas], (-1, k))  # (N, k)
        ridge = self.RIDGE * np.eye(k)
        inner = self._genes.T @ (effects - self.mean_delta).T @ embedding  # (k, k)
        inner = np.linalg.solve(self._genes.T @ self._genes + ridge, inner)
        self._weight = np.linalg.solve(embedding.T @ embedding + ridge, inner.T).T  # (k, k): W

    def _embed(self, key: Perturbation) -> Array:
        rows = [self._row[target] for target in key if target in self._row]
        result: Array = self._genes[rows].sum(axis=0)  # (k,)
        return result

    def _delta(self, key: Perturbation) -> Array:
        result: Array = self.mean_delta + self._genes @ (self._weight @ self._embed(key))
        return result
