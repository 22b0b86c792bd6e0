"""The benchmark table: comparison of a model with baselines on held-out groups.

Every method predicts the mean profile of a held-out group from training data only. For datasets of cells,
sets of cells are also compared by MMD and energy distance; the cells of a baseline are control cells plus its
predicted change.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from tadvae.base.errors import UserError
from tadvae.data.reader import Mapper, loop
from tadvae.data.splits import TRAIN, SplitConfig
from tadvae.evaluation.answers import Answer, answer
from tadvae.evaluation.baselines import Baseline, fit_all
from tadvae.evaluation.bootstrap import bootstrap_mean
from tadvae.evaluation.ceiling import resampled_metrics, split_half_ceiling
from tadvae.evaluation.context_baselines import CONTEXT_BASELINES
from tadvae.evaluation.differential_expression import DE_METRICS, Response, responding_genes
from tadvae.evaluation.distances import energy_distance, median_bandwidths, mmd_unbiased
from tadvae.evaluation.dose_interpolation import DoseInterpolation
from tadvae.evaluation.latent_additive import LatentAdditive
from tadvae.evaluation.leaks import check_leaks
from tadvae.evaluation.metrics import (
    centroid_accuracy,
    pearson_delta,
    rank_score,
    responsive_genes,
    score_profiles,
)
from tadvae.evaluation.questions import Question, ask, held_out_groups
from tadvae.evaluation.scgen import ScGen
from tadvae.model.conformal import Calibration
from tadvae.model.ensemble import Ensemble, Model, description
from tadvae.store.manifest import GROUP_KEYS
from tadvae.store.reader import Store

METHOD = "tadvae"
"""Name of the evaluated model in the table."""
CEILING, NULL = "noise_ceiling", "null_95"
"""Methods of the table that compare the halves of a held-out group: mean scores, and the 95% quantile of
their distances."""
COVERAGE, WIDTH = "coverage", "interval_width"
"""Metrics of calibrated intervals: share of genes inside, from 0 to 1, and mean width."""


@dataclass(frozen=True)
class Scores:
    """Result of :func:`evaluate`.

    Attributes
    ----------
    table
        One row per (group, method, metric): dataset, context, perturbation, category, method, metric, value,
        and ``low``, ``high``, its 95% interval over resampled cells of the group; NaN without an interval.
    abstained
        Held-out groups for which the model has no specific prediction, with the reason.
    notes
        What is missing from the table, with the reason.
    """

    table: pd.DataFrame
    abstained: dict[str, str]
    notes: list[str] = field(default_factory=list)

    def summary(self, seed: int = 0) -> pd.DataFrame:
        """Mean over groups and its bootstrap interval, per category (also ``all``), method and metric."""
        both = pd.concat([self.table.assign(category="all"), self.table])
        rows = []
        for (category, method, metric), part in both.groupby(["category", "method", "metric"], sort=False):
            interval = bootstrap_mean(part["value"], seed=seed)
            rows.append((category, method, metric, len(part), *interval))
        columns = ["category", "method", "metric", "n", "mean", "low", "high"]
        return pd.DataFrame(rows, columns=columns).drop_duplicates()


def evaluate(
    store: Store,
    groups: pd.DataFrame,
    model: Model,
    *,
    rivals: Mapping[str, tuple[Model, pd.DataFrame]] | None = None,
    category: str | None = None,
    mapper: Mapper = loop,
    keep: Callable[[Question, Answer], None] | None = None,
) -> Scores:
    """Score the model and every baseline on the held-out groups of its run.

    Parameters
    ----------
    groups
        The run's split, from :func:`tadvae.data.splits.split_groups`.
    rivals
        Other trained models with their splits, by their name in the table; they predict the same groups from
        the same control cells.
    category
        Only groups of this category (``combo_seen2``, ``unseen_single``, …); None: all.
    keep
        Called with every question and the model's answer to it.

    Raises
    ------
    UserError
        If nothing is held out, no group has the category, a context has no control cells, the leak check
        fails, or a rival was trained on another split.
    """
    rivals = dict(rivals or {})
    tested = held_out_groups(groups, store.control, category)
    for name, (rival, split) in rivals.items():
        _require_comparable(name, rival, split, model, groups)
    check_leaks(store, groups, model, mapper)
    for rival, split in rivals.values():
        check_leaks(store, split, rival, mapper)
    rows: list[dict[str, Any]] = []
    abstained: dict[str, str] = {}
    notes = [f"{METHOD}: {description(model)}"]
    notes += [f"{name}: {description(rival)}" for name, (rival, _) in rivals.items()]
    calibration = model.calibration if isinstance(model, Ensemble) else None
    for question in ask(store, groups, tested, model.vocabulary, model.config.split, mapper):
        given = {METHOD: answer(store, model, question)}
        given |= {name: answer(store, rival, question) for name, (rival, _) in rivals.items()}
        abstained |= given[METHOD].abstained
        if keep is not None:
            keep(question, given[METHOD])
        if question.elsewhere and any(p != store.control for _, p in question.elsewhere):
            cells = {key: each.dense(question.genes) for key, each in question.elsewhere.items()}
            scgen = ScGen().fit(question.controls.dense(question.genes), cells, store.control)
            given = {ScGen.name: scgen.answer(question)} | given
        rows += _score(question, given, calibration)
        if not question.has_cells:
            kind = "signatures" if question.has_effects else "mean profiles"
            notes.append(
                f"{question.where}: {kind} only, so noise ceiling, MMD and energy distance are not available"
            )
    if calibration is not None:
        notes.append(
            f"intervals of {calibration.level:.0%}, calibrated on {calibration.n} held-out training groups "
            f"({'combinations' if calibration.kind == 'combo' else 'single targets'})"
            + ("" if np.isfinite(calibration.factor) else ": too few to guarantee coverage")
        )
    return Scores(pd.DataFrame(rows), abstained, notes)


def _require_comparable(
    name: str, rival: Model, split: pd.DataFrame, model: Model, groups: pd.DataFrame
) -> None:

    def held(frame: pd.DataFrame) -> set[Any]:
        return set(frame.loc[frame["part"] != TRAIN, GROUP_KEYS].itertuples(index=False, name=None))

    def cells(split: SplitConfig) -> tuple[Any, ...]:
        return (split.folds, split.fold, split.seed) if split.kind == "cells" else ()

    same = held(split) == held(groups) and cells(rival.config.split) == cells(model.config.split)
    if not same or set(split["part"]) != set(groups["part"]):
        raise UserError(
            f"--against {name}: it was trained on another split, so its held-out groups are not the same; "
            "compare runs of one split (the same split settings on the same store)."
        )
    if [d.method for d in rival.vocabulary.datasets] != [d.method for d in model.vocabulary.datasets] or any(
        not np.array_equal(a.genes, b.genes)
        for a, b in zip(rival.vocabulary.datasets, model.vocabulary.datasets, strict=True)
    ):
        raise UserError(
            f"--against {name}: it sees other genes or another normalisation; compare runs of the same "
            "preprocess settings."
        )


def _score(
    question: Question, given: dict[str, Answer], calibration: Calibration | None
) -> list[dict[str, Any]]:
    """Rows of all methods for the groups of one question."""
    control, observed, effects = question.control, question.observed, question.has_effects
    further: tuple[type[Baseline], ...] = (LatentAdditive, *CONTEXT_BASELINES, DoseInterpolation)
    more = [each for each in further if each.applies(question.profiles)]
    baselines = fit_all(question.profiles) | {each.name: each().fit(question.profiles) for each in more}
    predicted = {
        name: baseline.predict(question.targets, question.amounts) for name, baseline in baselines.items()
    }
    predicted |= {name: own.mean for name, own in given.items()}
    scores: dict[tuple[str, str], np.ndarray] = {}
    responsive = responsive_genes(question.profiles.means - control) if len(question.profiles.means) else None
    for name, mean in predicted.items():
        for metric, values in score_profiles(mean, observed, control, effects=effects).items():
            scores[name, metric] = values
        if responsive is not None:
            scores[name, "pearson_delta_de"] = np.array(
                [
                    pearson_delta(p[responsive], t[responsive], control[responsive])
                    for p, t in zip(mean, observed, strict=True)
                ]
            )
        if len(observed) > 1:
            scores[name, "rank_cosine"] = rank_score(mean, observed, control, effects=effects)
            scores[name, "rank_rmse"] = rank_score(mean, observed, control, kind="rmse")
            scores[name, "centroid_accuracy"] = centroid_accuracy(mean, observed)
    dataset = question.groups["dataset_name"].iloc[0]
    if calibration is not None and dataset in calibration.scale and np.isfinite(calibration.factor):
        own = given[METHOD]
        half = calibration.half_width(dataset, own.spread)  # (M, G)
        scores[METHOD, COVERAGE] = (np.abs(observed - own.mean) <= half).mean(axis=1)
        scores[METHOD, WIDTH] = 2.0 * half.mean(axis=1)
    intervals: dict[tuple[str, str], np.ndarray] = {}
    if question.has_cells:
        _score_cells(question, predicted, given, scores, intervals)
    rows = []
    fields = ["dataset_name", "context_name", "perturbation_name", "category"]
    for i, names in enumerate(question.groups[fields].itertuples(index=False)):
        where = dict(zip(("dataset", "context", "perturbation", "category"), names, strict=True))
        for (method, metric), values in scores.items():
            if method in (CEILING, NULL) and np.isnan(values[i]):
                continue
            low, high = intervals[method, metric][i] if (method, metric) in intervals else (np.nan, np.nan)
            rows.append(
                where
                | {"method": method, "metric": metric, "value": float(values[i])}
                | {"low": float(low), "high": float(high)}
            )
    return rows


def _score_cells(
    question: Question,
    predicted: dict[str, np.ndarray],
    given: dict[str, Answer],
    scores: dict[tuple[str, str], np.ndarray],
    intervals: dict[tuple[str, str], np.ndarray],
) -> None:
    """Add scores that need the held-out cells: distances, responding genes, noise ceiling, intervals."""
    m = len(question.cells)
    before = question.controls.dense(question.genes)  # (n, G)

    def put(
        where: dict[tuple[str, str], Any], key: tuple[str, str], i: int, value: object, shape: tuple[int, ...]
    ) -> None:
        where.setdefault(key, np.full(shape, np.nan))[i] = value

    for i, held in enumerate(question.cells):
        observed = held.dense(question.genes)  # (k, G)
        if len(observed) < 2:
            continue
        bandwidths = median_bandwidths(observed)  # the same bandwidths for every method
        kept = ~np.isin(question.profiles.genes, question.target_genes(i))
        responds = responding_genes(observed, before) & kept
        for name, means in predicted.items():
            if name in given:
                cells = given[name].cells[i]
            else:
                cells = before + (means[i] - question.control).astype(np.float32)
            put(scores, (name, "mmd"), i, mmd_unbiased(cells, observed, bandwidths), (m,))
            put(scores, (name, "energy_distance"), i, energy_distance(cells, observed), (m,))
            response = Response(means[i], question.observed[i], question.control, responds, kept)
            for metric, score in DE_METRICS.items():
                put(scores, (name, metric), i, score(response), (m,))
            for metric, values in resampled_metrics(means[i], observed, question.control, seed=i).items():
                if not np.isnan(values).any():
                    put(intervals, (name, metric), i, np.quantile(values, [0.025, 0.975]), (m, 2))
        ceiling = split_half_ceiling(observed, question.control, bandwidths, seed=i)
        if ceiling is not None:
            for metric, value in ceiling.metrics.items():
                put(scores, (CEILING, metric), i, value, (m,))
            for metric, value in ceiling.null.items():
                put(scores, (NULL, metric), i, value, (m,))
