"""Which perturbations move control cells towards a wanted state, how sure that is, and by which pathways.

A perturbation changes the mean profile of n control cells x by δ; m cells y are in the wanted state. There
are two scores::

    cosine:  δ·w / (|δ| |w|),  w = ȳ − x̄
    energy:  2 (mean_ij |x_i − y_j| − mean_ij |x_i + δ − y_j|) / D,  D = the energy distance of x and y

The energy score is the share of the energy distance that the perturbation removes, if every cell changes by
δ: about 1 arrives, 0 does not move, below 0 moves away. D is the unbiased distance, so that the score may be
a little above 1. The distances within x and within y cancel.

Source: energy distance, Székely and Rizzo (2013); for single cells Peidli et al. (2024).
"""

import heapq
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import anndata as ad
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tadvae.base.errors import UserError
from tadvae.data.amounts import Pair
from tadvae.evaluation.distances import energy_distance
from tadvae.model.combinations import Combinations, Question
from tadvae.model.ensemble import Model
from tadvae.model.mean_table import MeanTable
from tadvae.model.new_cells import cells_of
from tadvae.model.start import MeansAt
from tadvae.pathways.membership import Membership

Array = NDArray[np.float64]
Score = Literal["energy", "cosine"]

MOST_CELLS = 256
"""Cells of either state that the scores use; of more, some that are spread evenly."""
LEAST_CELLS = 5
"""Cells of the wanted state without which nothing is ranked."""
DISTANCES = 2**22
"""Distances in memory at a time: 32 MiB."""
NORMAL = 1.959964
"""Standard errors from the middle of a 95% interval to its ends."""
NAMED = 3
"""Pathways that are named for each perturbation."""


@dataclass
class Ranking:
    """Perturbations, those first that move control cells furthest towards the wanted state.

    Attributes
    ----------
    table
        ``rank``, ``perturbation``, ``score``, ``se``, ``low``, ``high`` (95%), ``energy``, ``cosine``,
        ``size`` (|δ|) and ``pathways``: those that carry the score most, with their share of it.
    score
        The score that ranks.
    n_asked
        Perturbations that were compared.
    reasons
        Number of perturbations without an answer, by reason.
    context, dataset
        Where predictions start.
    n_controls, n_state, n_genes
        Control cells, cells of the wanted state, and genes that both have.
    distance
        Energy distance between the control cells and the wanted state.
    members
        Models of an ensemble, whose disagreement is in the standard errors; 1 for one model.
    """

    table: pd.DataFrame
    score: Score
    n_asked: int
    context: str
    dataset: str
    n_controls: int
    n_state: int
    n_genes: int
    distance: float
    members: int
    reasons: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Towards:
    """Control cells and the wanted state, on the genes that both have.

    Attributes
    ----------
    x : (n, G)
        Control cells.
    y : (m, G)
        Cells in the wanted state.
    distance
        Their energy distance.
    """

    x: Array
    y: Array
    distance: float

    @property
    def wanted(self) -> Array:
        """w, the wanted change of the mean profile, (G,)."""
        result: Array = self.y.mean(axis=0) - self.x.mean(axis=0)
        return result

    def cosine(self, change: Array, wanted: Array | None = None) -> Array:
        """Cosine scores of M changes (M, G), for the wanted change or for B others (B, G): (M,) or (M, B)."""
        w = self.wanted if wanted is None else wanted
        length = np.linalg.norm(change, axis=1)
        product = change @ w.T  # (M,) or (M, B)
        norms = np.multiply.outer(length, np.linalg.norm(w, axis=-1))
        result: Array = np.divide(product, norms, out=np.zeros_like(product), where=norms > 0.0)
        return result

    def energy(self, change: Array, u: Array | None = None, v: Array | None = None) -> Array:
        """Energy scores of M changes (M, G), (M,); with weights of cells u (B, n), v (B, m): (M, B)."""
        n, m = len(self.x), len(self.y)
        one_u, one_v = np.full((1, n), 1.0 / n), np.full((1, m), 1.0 / m)
        left, right = (one_u if u is None else u), (one_v if v is None else v)
        centre = self.y.mean(axis=0)
        x, y = self.x - centre, self.y - centre  # smaller numbers, so that squares lose fewer digits
        squares = (x**2).sum(axis=1)[:, None] + (y**2).sum(axis=1) - 2.0 * x @ y.T  # (n, m)
        before = np.einsum("bn,nm,bm->b", left, np.sqrt(np.maximum(squares, 0.0)), right)
        result = np.empty((len(change), len(left)))
        step = max(DISTANCES // (n * m), 1)
        for start in range(0, len(change), step):
            some = change[start : start + step]
            moved = squares + 2.0 * ((some @ x.T)[:, :, None] - (some @ y.T)[:, None, :])
            moved += (some**2).sum(axis=1)[:, None, None]  # (k, n, m)
            distances = np.sqrt(np.maximum(moved, 0.0, out=moved), out=moved)
            after = np.einsum("knb,bn->kb", distances @ right.T, left)
            result[start : start + step] = 2.0 * (before - after) / self.distance
        return result[:, 0] if u is None else result

    def scores(self, score: Score, change: Array) -> Array:
        """Scores of M changes (M, G), (M,)."""
        return self.energy(change) if score == "energy" else self.cosine(change)

    def resampled(self, score: Score, change: Array, n_draws: int, seed: int) -> Array:
        """Scores with cells of both states drawn again with replacement, (M, n_draws)."""
        rng = np.random.default_rng(seed)
        u, v = (
            rng.multinomial(len(cells), np.full(len(cells), 1.0 / len(cells)), n_draws) / len(cells)
            for cells in (self.x, self.y)
        )
        if score == "energy":
            return self.energy(change, u, v)
        return self.cosine(change, v @ self.y - u @ self.x)


def rank_towards(
    model: Model,
    state: ad.AnnData,
    targets: Combinations | Sequence[str | Sequence[str]] | str = "singles",
    *,
    context: str | None = None,
    dataset: str | None = None,
    controls: ad.AnnData | None = None,
    values: Literal["counts", "log1p"] = "counts",
    score: Score = "energy",
    top: int = 1_000,
    n_draws: int = 200,
    seed: int = 0,
) -> Ranking:
    """Rank perturbations by how far they move control cells towards a wanted state.

    Parameters
    ----------
    model
        A model or an ensemble.
    state
        Cells in the wanted state, at least five, with any panel.
    targets, context, dataset, controls
        Which perturbations, and where they start, as for
        :meth:`tadvae.model.predict_many.PredictsMany.predict_many`; of one context.
    values
        Whether ``state`` and ``controls`` hold counts or log1p values.
    score
        - ``energy``: the share of the energy distance to the state that is removed; it asks how far. The
          usual choice.
        - ``cosine``: the cosine of predicted and wanted change; it asks for the direction, however small the
          change.
    top
        Number of perturbations in the table; the others are compared, but not shown.
    n_draws, seed
        Number of times that cells are drawn again for the standard errors, and the seed of it.

    Returns
    -------
    The ranking. Standard errors are those of the sampling of cells and of the disagreement of an
    ensemble's members; the error of the model itself is not in them.

    Raises
    ------
    UserError
        If there are several contexts or one of signatures, if the state has no genes in common with it, or
        cannot be told from the control cells.
    """
    if score not in ("energy", "cosine"):
        raise UserError(f"score={score!r}: expected 'energy' or 'cosine'.")
    if top < 1:
        raise UserError(f"top={top}: expected a number of perturbations from 1 on.")
    asked = Combinations.of(targets)
    table = MeanTable(
        model, asked, context=context, dataset=dataset, controls=controls, values=values, errors=False
    )
    if len(table.places) != 1:
        names = ", ".join(table.place_name(i) for i in range(len(table.places)))
        raise UserError(f"rank: name one context to start from, with --context and --dataset ({names}).")
    if table.units == "effects":
        raise UserError(
            f"rank: {table.place_name(0)} holds signatures, whose effects start from no cells; name a "
            "context of a dataset of cells or profiles."
        )
    place = table.places[0]
    towards, shared = _towards(model, place, state, values)
    before = place.start.cells.dense(place.start.genes).mean(axis=0, dtype=np.float64)[shared]
    best: list[tuple[float, int, Question]] = []
    reasons: Counter[str] = Counter()
    number = 0
    for part in table.parts():
        known = [i for i, each in enumerate(part.questions) if each.pairs]
        reasons.update(each.reason for each in part.questions if each.reason)
        if not known:
            continue
        change = part.layers["mean"][known][:, shared].astype(np.float64) - before
        for i, value in zip(known, towards.scores(score, change).tolist(), strict=True):
            number += 1  # of equal ones, the first is kept
            entry = (value, -number, part.questions[i])
            if len(best) < top:
                heapq.heappush(best, entry)
            elif entry[:2] > best[0][:2]:
                heapq.heapreplace(best, entry)
    chosen = [question for *_, question in sorted(best, key=lambda each: each[:2], reverse=True)]
    start = place.start
    return Ranking(
        table=_details(model, table, towards, shared, chosen, score, n_draws, seed),
        score=score,
        n_asked=number,
        context=start.context,
        dataset=model.vocabulary.datasets[start.dataset].name,
        n_controls=len(towards.x),
        n_state=len(towards.y),
        n_genes=int(shared.sum()),
        distance=towards.distance,
        members=max(len(place.members), 1),
        reasons=reasons,
    )


def _towards(
    model: Model, place: MeansAt, state: ad.AnnData, values: Literal["counts", "log1p"]
) -> tuple[Towards, np.ndarray]:
    """The two sets of cells, and which genes of the start both have, bool (G,)."""
    new = cells_of(state, model.vocabulary, model.config.preprocess, layer=None, values=values)
    start = place.start
    if len(new.cells) < LEAST_CELLS:
        raise UserError(
            f"the wanted state has {len(new.cells)} cells, expected at least {LEAST_CELLS}; give more cells."
        )
    shared = np.isin(start.genes, new.genes)
    if not shared.any():
        raise UserError(
            "the wanted state and the control cells have no gene of the model in common; give cells with the "
            "genes of the screen."
        )
    x = start.cells.take(_evenly(len(start.cells))).dense(start.genes)[:, shared].astype(np.float64)
    y = new.cells.take(_evenly(len(new.cells))).dense(new.genes)
    y = y[:, np.searchsorted(new.genes, start.genes[shared])].astype(np.float64)
    distance = energy_distance(x, y, unbiased=len(x) > 1)
    if not distance > 1e-9 * float(np.abs(y).sum(axis=1).mean() + 1e-12):
        raise UserError(
            "the wanted state cannot be told from the control cells (their energy distance is "
            f"{distance:.3g}); give cells of another state."
        )
    return Towards(x, y, distance), shared


def _evenly(n: int) -> np.ndarray:
    """At most :data:`MOST_CELLS` of n rows, spread evenly."""
    return np.unique(np.linspace(0, n - 1, min(n, MOST_CELLS)).astype(np.int64))


def _details(
    model: Model,
    table: MeanTable,
    towards: Towards,
    shared: np.ndarray,
    chosen: Sequence[Question],
    score: Score,
    n_draws: int,
    seed: int,
) -> pd.DataFrame:
    """Scores with their standard errors, and the pathways, of the perturbations that are shown."""
    place, membership = table.places[0], model.vocabulary.membership
    genes, wanted = place.start.genes[shared], towards.wanted
    rows: list[dict[str, int | float | str]] = []
    for questions in _some(chosen, 256):
        pairs = [question.pairs or [] for question in questions]
        change = _changes(place, pairs, shared)  # (k, G)
        variance = towards.resampled(score, change, n_draws, seed).var(axis=1, ddof=1)
        if len(place.members) > 1:  # the error of their mean
            by_member = np.stack(
                [towards.scores(score, _changes(each, pairs, shared)) for each in place.members]
            )
            variance = variance + by_member.var(axis=0, ddof=1) / len(place.members)
        se = np.sqrt(variance)
        energy, cosine = towards.energy(change), towards.cosine(change)
        for i, question in enumerate(questions):
            value = float((energy if score == "energy" else cosine)[i])
            rows.append(
                {
                    "rank": len(rows) + 1,
                    "perturbation": question.label,
                    "score": value,
                    "se": float(se[i]),
                    "low": max(value - NORMAL * float(se[i]), -1.0 if score == "cosine" else -np.inf),
                    "high": min(value + NORMAL * float(se[i]), 1.0 if score == "cosine" else np.inf),
                    "energy": float(energy[i]),
                    "cosine": float(cosine[i]),
                    "size": float(np.linalg.norm(change[i])),
                    "pathways": _named(carrying(change[i], wanted, genes, membership), membership),
                }
            )
    columns = ["rank", "perturbation", "score", "se", "low", "high", "energy", "cosine", "size", "pathways"]
    return pd.DataFrame(rows, columns=columns)


def _changes(place: MeansAt, pairs: Sequence[Sequence[Pair]], shared: np.ndarray) -> Array:
    """Predicted changes of the mean profile on shared genes, none below zero expression, (k, G)."""
    before = place.start.cells.dense(place.start.genes).mean(axis=0, dtype=np.float64)
    result: Array = (np.maximum(place.means(pairs).mean.astype(np.float64), 0.0) - before)[:, shared]
    return result


@dataclass(frozen=True)
class Carrying:
    """How much of a score the genes of each pathway carry.

    Attributes
    ----------
    share : (P,)
        Sum over the pathway's genes of δ_g w_g, as a share of the sum over all genes.
    z : (P,)
        Whether that is more than of as many other genes: the mean of δ_g w_g over the pathway's genes less
        that over all, in standard errors. NaN with fewer than two genes.
    """

    share: Array
    z: Array


def carrying(change: Array, wanted: Array, genes: np.ndarray, membership: Membership) -> Carrying:
    """How much of the agreement of a predicted and a wanted change, both (G,), each pathway carries.

    Source: parametric enrichment of gene sets, Kim and Volsky (2005), BMC Bioinformatics 6, 144.

    Parameters
    ----------
    genes
        Sorted vocabulary indices of the G genes.
    """
    product = change * wanted  # (G,)
    at = np.searchsorted(genes, membership.gene)
    inside = (at < len(genes)) & (genes[np.minimum(at, len(genes) - 1)] == membership.gene)
    pathway, value = membership.pathway[inside], product[at[inside]]
    n = np.bincount(pathway, minlength=membership.n_pathways).astype(np.float64)
    total = np.bincount(pathway, weights=value, minlength=membership.n_pathways)
    whole, spread = float(product.sum()), float(product.std())
    share = total / whole if whole else np.zeros(len(total))
    z = np.full(len(n), np.nan)
    if spread > 0.0:
        np.divide((total - n * product.mean()), np.sqrt(n) * spread, out=z, where=n > 1)
    return Carrying(share, z)


def _named(found: Carrying, membership: Membership) -> str:
    """The pathways that carry most, if more than as many other genes would: names and shares."""
    order = np.argsort(-np.nan_to_num(found.z, nan=-np.inf), kind="stable")[:NAMED].tolist()
    shown = [p for p in order if found.z[p] > NORMAL and found.share[p] > 0.0]
    return "; ".join(
        f"{membership.names[p] or membership.pathway_ids[p]} ({found.share[p]:.0%})" for p in shown
    )


def _some(questions: Sequence[Question], size: int) -> Iterator[Sequence[Question]]:
    for start in range(0, len(questions), size):
        yield questions[start : start + size]
