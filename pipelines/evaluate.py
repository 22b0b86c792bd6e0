"""``tadvae evaluate``: comparison of a run with baselines and other runs on its held-out groups."""

from collections.abc import Callable, Sequence

import pandas as pd
import torch
from rich.table import Table
from rich.text import Text

from pipelines.cluster.connection import mapping
from tadvae.base.errors import UserError
from tadvae.base.filesystem import Location
from tadvae.data.store_of_model import open_store
from tadvae.evaluation.answers import Answer
from tadvae.evaluation.evaluate import CEILING, METHOD, NULL, Scores, evaluate
from tadvae.evaluation.metrics import HIGHER_IS_BETTER
from tadvae.evaluation.questions import Question
from tadvae.model.device import chosen_device
from tadvae.model.ensemble import Model, load_model
from tadvae.model.run_folder import RunFolder

SHOWN = {
    "mean profiles": ("pearson_delta", "pearson_delta_de", "l2", "rmse", "cosine_logfc", "de_overlap"),
    "responding genes": ("de_direction_match", "de_jaccard", "de_lfc_error", "de_spearman_lfc_sig"),
    "which perturbation, which cells": (
        "rank_cosine", "centroid_accuracy", "mmd", "energy_distance", "coverage", "interval_width",
    ),
}  # fmt: skip
"""Metrics of the printed tables of each category."""


def evaluate_run(
    run_path: str,
    category: str | None = None,
    store_path: str | None = None,
    against: Sequence[str] = (),
    gpu: bool = False,
    keep: Callable[[Question, Answer], None] | None = None,
) -> Scores:
    """Evaluate a finished run or ensemble; the scores are also written to ``RUN/evaluation``.

    Parameters
    ----------
    category
        Category of held-out groups to evaluate; None: all.
    store_path
        Path or URL of the run's store, if it has moved; None: its path at training.
    against
        Other runs or ensembles of the same split to include in the table.
    gpu
        Predict on the GPU of this process.
    keep
        Called with every question and the model's answer to it.

    Raises
    ------
    UserError
        If the run is not finished, the store is not that of the run, or there is nothing to evaluate.
    """
    run = RunFolder(run_path)
    device = chosen_device(gpu)
    model, groups, store_of_run = _load(run_path, device)
    store = open_store(store_path or store_of_run, model.vocabulary)
    if store.manifest.vocabulary_hash != model.vocabulary.hash:
        raise UserError(
            f"{store.folder}: a store of another gene vocabulary ({store.manifest.vocabulary_hash}) than the "
            f"model's ({model.vocabulary.hash}); give the store of the run with --store."
        )
    rivals: dict[str, tuple[Model, pd.DataFrame]] = {}
    for path in against:
        rival, split, _ = _load(path, device)
        if rival.vocabulary.hash != model.vocabulary.hash:
            raise UserError(f"--against {path}: it was trained on another store; compare runs of one store.")
        rivals[_free_name(Location.of(path).name, rivals)] = rival, split
    with mapping(store.n_bytes) as mapper:
        scores = evaluate(store, groups, model, rivals=rivals, category=category, mapper=mapper, keep=keep)
    run.write_scores(category or "all", scores.table, as_json(scores))
    return scores


def _load(path: str, device: torch.device) -> tuple[Model, pd.DataFrame, str]:
    """Load a run or ensemble, its split, and the path of its store."""
    first = next(iter(RunFolder(path).members().values()))
    model = load_model(path, device)
    first.require_run("evaluate")
    return model, first.split(), first.about()["store"]


def _free_name(name: str, taken: dict) -> str:
    """Name of a rival in the table: its folder name, with a number if the name is taken."""
    reserved = {METHOD, CEILING, NULL, *taken}
    number, free = 2, name
    while free in reserved:
        free, number = f"{name} ({number})", number + 1
    return free


def as_json(scores: Scores) -> dict:
    """The summary for JSON: category → method → metric → mean, low, high, n."""
    result: dict = {}
    for row in scores.summary().itertuples():
        cell = {"mean": row.mean, "low": row.low, "high": row.high, "n": int(row.n)}
        result.setdefault(row.category, {}).setdefault(row.method, {})[row.metric] = cell
    return {"summary": result, "abstained": scores.abstained, "notes": scores.notes}


def tables(scores: Scores) -> list[Table]:
    """Tables of each category, one row per method: mean [95% interval]; the best of a column is bold."""
    summary = scores.summary()
    categories = [name for name in summary["category"].unique() if name != "all"]
    shown = ["all", *categories] if len(categories) > 1 else categories
    found = []
    for category in shown:
        part = summary[summary["category"] == category]
        scored = set(part["metric"])
        found += [
            _table(f"{category}, {about}", part, metrics)
            for about, metrics in SHOWN.items()
            if scored & set(metrics)
        ]
    return found


def _table(about: str, summary: pd.DataFrame, columns: Sequence[str]) -> Table:
    metrics = [name for name in columns if name in set(summary["metric"])]
    n = int(summary["n"].max())
    title = f"{about}: {n} held-out groups, mean [95% interval over groups]"
    table = Table(title=title, title_justify="left")
    table.add_column("method")
    for metric in metrics:
        table.add_column(f"{metric} {_arrow(metric)}".rstrip(), justify="right")
    methods = [name for name in summary["method"].unique() if name not in (CEILING, NULL)]
    best = {metric: _best(summary, methods, metric) for metric in metrics}
    for method in [*methods, CEILING, NULL]:
        rows = summary[summary["method"] == method].set_index("metric")
        if method in (CEILING, NULL) and not set(rows.index) & set(metrics):
            continue
        cells: list[str | Text] = []
        for metric in metrics:
            if metric not in rows.index:
                cells.append("")
                continue
            value = rows.loc[metric]
            text = f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"
            competes = method in methods and value["mean"] == best[metric]
            cells.append(Text(text, "bold") if competes else text)
        table.add_row(Text(method, "bold") if method == METHOD else method, *cells)
    return table


def _arrow(metric: str) -> str:
    return "" if metric not in HIGHER_IS_BETTER else "↑" if HIGHER_IS_BETTER[metric] else "↓"


def _best(summary: pd.DataFrame, methods: Sequence[str], metric: str) -> float | None:
    if metric not in HIGHER_IS_BETTER:
        return None
    rows = summary[(summary["metric"] == metric) & summary["method"].isin(methods)]
    pick: Callable[[pd.Series], float] = pd.Series.max if HIGHER_IS_BETTER[metric] else pd.Series.min
    return pick(rows["mean"])
