"""The causal graph read from interventions: where each target acts, and how factors act on each other.

The graph that training learns is one of many that fit: a linear decoder after ``(I − G)⁻¹`` is again a
linear decoder. What interventions do to *pathways* settles it, under two assumptions that
:mod:`tadvae.simulation.simulate` makes and that a user should weigh: every pathway is driven by one factor,
and every factor is directly targeted by some perturbation. Then the effect of target t on pathway p is::

    B_tp = s_t · T[k(t), k(p)] · l_p        T = (I − G)⁻¹

so rows of B of one factor have one direction, and so have columns. Clustering rows gives the factors and
their targets, clustering columns the factors' pathways; the assignment of the one to the other that makes
the direct effects largest gives T in units of them, and ``G = I − T⁻¹``.

Source: this project; that soft interventions on every factor identify G: Zhang et al. 2023, theorem 1.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import squareform

from tadvae.base.errors import UserError
from tadvae.data.vocabulary import Vocabulary
from tadvae.effects.model import EffectModel

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class CausalGraph:
    """What interventions say of K factors, in causal order where the graph has one.

    Attributes
    ----------
    target_factor : (T,) int64
        The factor that each target acts on directly.
    pathway_factor : (P,) int64
        The factor that drives each pathway most.
    pathways : (P,) int64
        Which pathways these are: indices of the vocabulary's, or rows of what was given.
    responses : (T, P)
        What it was read from: the effect of each target on each pathway.
    effects : (K, K)
        Total effect of factor i on factor j, in units of i's own: T.
    graph : (K, K)
        Direct effects, zero where below the threshold: G.
    """

    target_factor: np.ndarray
    pathway_factor: np.ndarray
    pathways: np.ndarray
    responses: Floats
    effects: Floats
    graph: Floats


def read_graph(
    effects: Floats, n_factors: int, threshold: float = 0.2, pathways: np.ndarray | None = None
) -> CausalGraph:
    """Factors, their targets and pathways, and the graph between them.

    Parameters
    ----------
    effects : (T, P)
        Change of the mean expression of each pathway's genes by each target. Counts of a cell add up to its
        library size, so that what one gene gains all others lose: each row is taken relative to its median.
    n_factors
        K.
    threshold
        Direct effects below it, in units of a factor's own effect, are none.
    pathways : (P,)
        Names of the columns, as indices; None: 0, 1, ….

    Raises
    ------
    UserError
        If there are fewer targets or pathways than factors, or an effect is missing.
    """
    T, P = effects.shape
    if min(T, P) < n_factors:
        raise UserError(
            f"causal graph: {T} targets and {P} pathways cannot show {n_factors} factors; ask for fewer."
        )
    if not np.isfinite(effects).all():
        raise UserError("causal graph: some effects are missing; leave out pathways that are not measured.")
    B = effects - np.median(effects, axis=1, keepdims=True)
    target_cluster = _directions(B, n_factors)
    K = int(target_cluster.max()) + 1
    rows = np.stack([_direction(B[target_cluster == k]) for k in range(K)])  # (K, P)
    pathway_cluster = _directions(rows.T, K)
    columns = [_direction(rows[:, pathway_cluster == k].T) for k in range(int(pathway_cluster.max()) + 1)]
    total = np.zeros((K, K))
    total[:, : len(columns)] = np.stack(columns, axis=1)
    share = np.abs(total) / np.maximum(np.linalg.norm(total, axis=0, keepdims=True), 1e-12)
    factor, column = linear_sum_assignment(-np.log(share + 1e-3))
    total = total[:, column[np.argsort(factor)]]
    own = np.diag(total).copy()
    own[np.abs(own) < 1e-12] = 1e-12
    total = total / own[:, None]
    graph = np.eye(K) - np.linalg.pinv(total)
    graph[np.abs(graph) < threshold] = 0.0
    np.fill_diagonal(graph, 0.0)
    order = _causal_order(graph)
    place = np.argsort(order)
    of_column = np.empty(K, np.int64)
    of_column[column] = factor
    return CausalGraph(
        target_factor=place[target_cluster],
        pathway_factor=place[of_column[pathway_cluster]],
        pathways=np.arange(P) if pathways is None else pathways,
        responses=effects,
        effects=total[np.ix_(order, order)],
        graph=graph[np.ix_(order, order)],
    )


def pathway_effects(model: EffectModel, vocabulary: Vocabulary) -> tuple[Floats, np.ndarray]:
    """What each target does to the mean expression of each pathway's genes, as if it were activated.

    Effects of the regression, averaged over the contexts of the datasets that tested the target.

    Returns
    -------
    (T, P) of the targets seen in training (in the vocabulary's order) on the pathways that every dataset can
    see, and the indices of those pathways.
    """
    pathways = np.flatnonzero(vocabulary.available.all(axis=0))
    membership = vocabulary.membership
    edges = np.ones(len(membership.gene)), (membership.pathway, membership.gene)
    shape = membership.n_pathways, membership.n_genes
    members = sparse.csr_array(edges, shape=shape)[pathways]  # (P, n_genes)
    total = np.zeros((len(vocabulary.targets), len(pathways)))
    times = np.zeros(len(vocabulary.targets))
    for row, context in enumerate(vocabulary.contexts):
        entry = vocabulary.datasets[context.dataset]
        tested = [(t, m) for t, m in entry.target_modality.items() if vocabulary.targets[t].seen]
        if not tested:
            continue
        effect = model.predict(context.dataset, row, [[pair] for pair in tested], entry.genes)  # (T, G)
        of_panel = members[:, entry.genes]
        sums = effect @ of_panel.T  # (T, P)
        signs = np.array([-1.0 if vocabulary.signs[m] < 0 else 1.0 for _, m in tested])
        index = np.array([t for t, _ in tested])
        total[index] += signs[:, None] * sums / of_panel.sum(axis=1)
        times[index] += 1
    seen = np.flatnonzero(times)
    return total[seen] / times[seen, None], pathways


def _directions(vectors: Floats, n: int) -> np.ndarray:
    """Clusters of vectors by the angle between their lines, (len(vectors),); average linkage."""
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    distance = np.clip(1.0 - np.abs(unit @ unit.T), 0.0, 1.0)
    np.fill_diagonal(distance, 0.0)
    clusters = fcluster(linkage(squareform(distance, checks=False), "average"), n, "maxclust")
    result: np.ndarray = clusters.astype(np.int64) - 1
    return result


def _direction(vectors: Floats) -> Floats:
    """The line that vectors (n, m) have in common, (m,), as long as their root mean square."""
    _, values, right = np.linalg.svd(vectors, full_matrices=False)
    result: Floats = right[0] * values[0] / len(vectors) ** 0.5
    return result


def _causal_order(graph: Floats) -> np.ndarray:
    """Factors with causes first; where there is a cycle, those with the least cause from the rest."""
    left, order = list(range(len(graph))), []
    while left:
        cause = np.abs(graph[np.ix_(left, left)]).sum(axis=0)
        order.append(left.pop(int(np.argmin(cause))))
    return np.array(order)
