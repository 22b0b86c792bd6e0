"""``tadvae evaluate``: a run's held-out groups, the model beside arithmetic."""

import io
import json
from collections.abc import Callable

import pandas as pd
from rich.table import Table

from pipelines.cluster import ray_map, ray_session
from tadvae.errors import UserError
from tadvae.evaluation.evaluate import METHOD, Scores, evaluate
from tadvae.evaluation.metrics import HIGHER_IS_BETTER
from tadvae.filesystem import Location
from tadvae.model import TADVAE
from tadvae.store.reader import Store

SHOWN = ("pearson_delta", "l2", "cosine_logfc", "rank_cosine", "centroid_accuracy", "mmd")


def evaluate_run(run_path: str, category: str | None = None, store_path: str | None = None) -> Scores:
    """Evaluate a finished run; the scores are also written to ``RUN/evaluation``.

    Parameters
    ----------
    category
        Only held-out groups of this category.
    store_path
        Where the run's store is now; None: where it was.

    Raises
    ------
    UserError
        For a run that is not finished, a store that is not the run's, or nothing to evaluate.
    """
    run = Location.of(run_path)
    model = TADVAE.from_pretrained(run_path)
    if not (run / "run.json").exists():
        raise UserError(f"{run}: a model without its run; evaluate needs the run's folder.")
    about = json.loads((run / "run.json").read_text())
    store = Store.open(store_path or about["store"])
    if store.manifest.vocabulary_hash != model.vocabulary.hash:
        raise UserError(
            f"{store.folder}: a store of another gene vocabulary ({store.manifest.vocabulary_hash}) than the "
            f"model's ({model.vocabulary.hash}); give the store of the run with --store."
        )
    groups = pd.read_parquet(io.BytesIO((run / "split.parquet").read_bytes()))
    with ray_session():
        scores = evaluate(store, groups, model, category=category, mapper=ray_map)
    folder = run / "evaluation"
    folder.make_folder()
    name = category or "all"
    buffer = io.BytesIO()
    scores.table.to_parquet(buffer, index=False)
    (folder / f"{name}.parquet").write_bytes(buffer.getvalue())
    (folder / f"{name}.json").write_text(json.dumps(as_json(scores), indent=1))
    return scores


def as_json(scores: Scores) -> dict:
    """The summary for other programs: category → method → metric → mean, low, high, n."""
    result: dict = {}
    for row in scores.summary().itertuples():
        cell = {"mean": row.mean, "low": row.low, "high": row.high, "n": int(row.n)}
        result.setdefault(row.category, {}).setdefault(row.method, {})[row.metric] = cell
    return {"summary": result, "abstained": scores.abstained}


def tables(scores: Scores) -> list[Table]:
    """One table a category, one row a method: mean [95% interval]; the best of a column is bold."""
    summary = scores.summary()
    categories = [name for name in summary["category"].unique() if name != "all"]
    shown = ["all", *categories] if len(categories) > 1 else categories
    return [_table(name, summary[summary["category"] == name]) for name in shown]


def _table(category: str, summary: pd.DataFrame) -> Table:
    metrics = [name for name in SHOWN if name in set(summary["metric"])]
    n = int(summary["n"].max())
    title = f"{category}: {n} held-out groups, mean [95% interval over groups]"
    table = Table(title=title, title_justify="left")
    table.add_column("method")
    for metric in metrics:
        table.add_column(f"{metric} {'↑' if _higher(metric) else '↓'}", justify="right")
    best = {metric: _best(summary[summary["metric"] == metric], metric) for metric in metrics}
    for method in summary["method"].unique():
        cells = []
        for metric in metrics:
            row = summary[(summary["method"] == method) & (summary["metric"] == metric)]
            if row.empty:
                cells.append("")
                continue
            value = row.iloc[0]
            text = f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]".replace("[", "\\[")
            cells.append(f"[bold]{text}[/bold]" if value["mean"] == best[metric] else text)
        table.add_row(f"[bold]{method}[/bold]" if method == METHOD else method, *cells)
    return table


def _higher(metric: str) -> bool:
    return HIGHER_IS_BETTER["mmd_unbiased" if metric == "mmd" else metric]


def _best(rows: pd.DataFrame, metric: str) -> float:
    pick: Callable[[pd.Series], float] = pd.Series.max if _higher(metric) else pd.Series.min
    return pick(rows["mean"])
