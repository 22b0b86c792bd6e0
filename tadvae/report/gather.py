"""From a run's folder, and its store where it is, to what the page shows."""

import shlex
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from tadvae.base.errors import UserError
from tadvae.data.reader import Mapper, loop
from tadvae.data.splits import TRAIN, VALIDATION
from tadvae.data.vocabulary import Vocabulary
from tadvae.evaluation.answers import answer
from tadvae.evaluation.evaluate import METHOD, Scores
from tadvae.evaluation.metrics import pearson_delta
from tadvae.evaluation.questions import ask
from tadvae.model.ensemble import Ensemble, Model, description, load_model
from tadvae.model.run_folder import RunFolder
from tadvae.report.data import Comparison, Report
from tadvae.report.learned import causal_graph, learned_graph, mask_change, profile_activity
from tadvae.report.verdict import against_baselines
from tadvae.store.manifest import GROUP_KEYS
from tadvae.store.reader import Store

SHOWN_GROUPS = 24
"""Held-out groups that are drawn, evenly from the best predicted to the worst."""
SHOWN_GENES = 60
SHOWN_METRICS = ("pearson_delta", "rmse", "rank_cosine", "mmd", "coverage", "interval_width")
"""Of the table of held-out groups."""
TERMS = ("loss", "reconstruction", "mmd", "mean_match", "kl", "sparsity")
"""Of a log, besides the scores of validation: what the learning curves show."""
NAMES = ["dataset_name", "context_name", "perturbation_name"]


@dataclass(frozen=True)
class Run:
    """A finished run or ensemble.

    Attributes
    ----------
    folder
    model
    groups
        Its split.
    started
        What ``run.json`` says, of an ensemble the first member's.
    members
        Folders of its runs by name.
    """

    folder: RunFolder
    model: Model
    groups: pd.DataFrame
    started: dict[str, Any]
    members: dict[str, RunFolder]

    @classmethod
    def load(cls, place: str) -> "Run":
        """Load a run's folder; a UserError where there is none, or it has not finished."""
        folder = RunFolder(place)
        if not folder.place.exists():
            raise UserError(f"{folder}: no such folder; give a run of `tadvae train`.")
        model, members = load_model(place), folder.members()
        first = next(iter(members.values()))
        first.require_run("report")
        return cls(folder, model, first.split(), first.about(), members)

    @property
    def held_out(self) -> pd.DataFrame:
        """Rows of the split that nothing was learned or chosen from; none where all was trained on."""
        held = ~self.groups["part"].isin([TRAIN, VALIDATION]) & (
            self.groups["perturbation_name"] != "control"
        )
        return self.groups[held]


def gather(run: Run, store: Store | None, mapper: Mapper = loop) -> Report:
    """Collect the page.

    Parameters
    ----------
    store
        The run's; None: without predictions beside observations.
    mapper
        Runs the reading of the store.
    """
    vocabulary = run.model.vocabulary
    warning = vocabulary.membership.warning
    notes = [] if warning is None else [warning]
    scores = run.folder.scores()
    held = run.held_out
    name = shlex.quote(str(run.folder))
    if held.empty:
        notes.append(
            "Nothing was held out in this run, so there is nothing to compare; another split holds something "
            "out, such as --set split.kind=single."
        )
    elif scores is None:
        notes.append(f"Not evaluated: `tadvae evaluate {name}`, then this report again, fills the table.")
    comparisons: list[Comparison] = []
    activity = None
    if store is None:
        notes.append(
            f"The store ({run.started['store']}) was not found, so predictions are not shown beside "
            "observations: `tadvae report … --store STORE` with where it is now."
        )
    elif not held.empty:
        comparisons, activity = _compare(store, run, _chosen(held, scores), mapper)
    curves = {name: _curve(folder) for name, folder in run.members.items()}
    if not any(len(curve) for curve in curves.values()):
        notes.append("No learning curves: members of an ensemble keep no log.")
    return Report(
        name=run.folder.place.name,
        about=_about(run),
        commands=_commands(run),
        config=run.model.config.to_yaml(),
        datasets=_datasets(run.groups, vocabulary),
        shared_genes=_shared([set(d.genes.tolist()) for d in vocabulary.datasets]),
        shared_targets=_shared([set(d.target_modality) for d in vocabulary.datasets]),
        curves={name: curve for name, curve in curves.items() if len(curve)},
        scores=None if scores is None else Scores(scores, {}).summary(),
        against=[] if scores is None else against_baselines(scores),
        groups=_groups(held, scores),
        comparisons=comparisons,
        asked=len(held),
        activity=activity,
        factors=learned_graph(run.model),
        causal=causal_graph(run.model),
        mask=mask_change(run.model),
        calibration=_calibration(run.model),
        notes=notes,
    )


def _about(run: Run) -> dict[str, str]:
    config, started = run.model.config, run.started
    origin = run.model.vocabulary.origin
    former = {} if origin is None else {"fine-tuned from": f"{origin.name} (weights {origin.sha256[:16]})"}
    return {
        "tadvae": started["tadvae_version"],
        **former,
        "model": description(run.model),
        "pathways": f"{started['pathways']} ({config.pathways.file or 'the packaged set'})",
        "split": f"{config.split.kind}: {len(run.held_out)} held-out groups of {len(run.groups)}",
        "training": f"{config.train.epochs} epochs of {started['bags']} bags, {started['workers']} worker(s)",
        "store": f"{started['store']} (genes {started['vocabulary_hash']})",
    }


def _commands(run: Run) -> list[str]:
    folder, store = shlex.quote(f"{run.folder}-again"), shlex.quote(run.started["store"])
    train = f"tadvae train {store} --out {folder} --config config.yaml"
    if isinstance(run.model, Ensemble):
        about = run.folder.ensemble()
        train += f" --seeds {len(run.members)} --calibration-folds {about['calibration_folds']}"
    else:
        train += f" --workers {run.started['workers']}" + (" --gpu" if run.started["gpu"] else "")
    return [train, f"tadvae evaluate {folder}", f"tadvae report {folder} --out report.html"]


def _datasets(groups: pd.DataFrame, vocabulary: Vocabulary) -> pd.DataFrame:
    rows = []
    for entry in vocabulary.datasets:
        part = groups[groups["dataset_name"] == entry.name]
        if entry.has_effects:  # the empty rows of its controls are no rows of the file
            part = part[part["perturbation_name"] != "control"]
        control = part["perturbation_name"] == "control"
        test = ~part["part"].isin([TRAIN, VALIDATION])
        rows.append(
            {
                "dataset": entry.name,
                "kind": entry.kind,
                "genes": len(entry.genes),
                "contexts": ", ".join(sorted(part["context_name"].unique())),
                "cells": int(part["n_cells"].sum()),
                "control cells": int(part.loc[control, "n_cells"].sum()),
                "perturbations": part.loc[~control, "perturbation_name"].nunique(),
                "held out": int((test & ~control).sum()),
            }
        )
    return pd.DataFrame(rows)


def _shared(sets: list[set[Any]]) -> np.ndarray:
    return np.array([[len(a & b) for b in sets] for a in sets])


def _curve(run: RunFolder) -> pd.DataFrame:
    """Means over each epoch of what the log of a run has; validation where an epoch had one."""
    steps = pd.DataFrame(run.steps())
    if steps.empty:
        return steps
    shown = [name for name in TERMS if name in steps] + [name for name in steps if name.startswith("val_")]
    return steps.groupby("epoch")[shown].mean().reset_index()


def _groups(held: pd.DataFrame, scores: pd.DataFrame | None) -> pd.DataFrame:
    table = held[[*NAMES, "category", "n_cells"]].set_axis([*GROUP_KEYS, "category", "cells"], axis=1)
    if scores is None:
        return table.reset_index(drop=True)
    own = scores[(scores["method"] == METHOD) & scores["metric"].isin(SHOWN_METRICS)]
    wide = own.pivot_table("value", GROUP_KEYS, "metric")
    wide = wide[[name for name in SHOWN_METRICS if name in wide]].reset_index()
    return table.merge(wide, on=GROUP_KEYS, how="left")


def _chosen(held: pd.DataFrame, scores: pd.DataFrame | None) -> pd.DataFrame:
    """Some held-out groups, evenly from the best to the worst where there are scores."""
    if scores is not None:
        own = scores[(scores["method"] == METHOD) & (scores["metric"] == "pearson_delta")]
        value = own.groupby(GROUP_KEYS)["value"].mean()
        keys = pd.MultiIndex.from_frame(held[NAMES])
        held = held.iloc[np.argsort(-value.reindex(keys).to_numpy(), kind="stable")]
    at = np.unique(np.linspace(0, len(held) - 1, min(SHOWN_GROUPS, len(held))).round().astype(int))
    return held.iloc[at]


def _compare(
    store: Store, run: Run, chosen: pd.DataFrame, mapper: Mapper
) -> tuple[list[Comparison], pd.DataFrame | None]:
    """Predictions beside observations, in the order of the chosen groups, and their activities."""
    model = run.model
    membership = model.vocabulary.membership
    calibration = model.calibration if isinstance(model, Ensemble) else None
    found, columns = {}, {}
    for question in ask(store, run.groups, chosen, model.vocabulary, model.config.split, mapper):
        given = answer(store, model, question)
        names = np.array(model.vocabulary.names(question.genes, question.place[0]), dtype=object)
        activity = None
        if not question.has_effects:  # the network reads expression
            activity = profile_activity(model, np.vstack([question.control, given.mean]), question.genes)
        for i, row in enumerate(question.groups.itertuples()):
            observed, predicted = question.observed[i] - question.control, given.mean[i] - question.control
            size = np.maximum(np.abs(observed), np.abs(predicted))
            top = np.argsort(-size, kind="stable")[:SHOWN_GENES]
            half = None
            if (
                calibration is not None
                and np.isfinite(calibration.factor)
                and row.dataset_name in calibration.scale
            ):
                half = calibration.half_width(row.dataset_name, given.spread[i])[top]
            place = f"{row.dataset_name}, {row.context_name}"
            key = (row.dataset, row.context, row.perturbation)
            if activity is not None:
                columns[row.dataset, row.context, -1] = f"control ({place})", activity[0]
                columns[key] = f"{row.perturbation_name} ({place})", activity[1 + i] - activity[0]
            found[key] = Comparison(
                dataset=row.dataset_name,
                context=row.context_name,
                perturbation=row.perturbation_name,
                genes=names[top].tolist(),
                observed=observed[top],
                predicted=predicted[top],
                half_width=half,
                pearson_delta=float(pearson_delta(given.mean[i], question.observed[i], question.control)),
            )
    order = [key for key in chosen[GROUP_KEYS].itertuples(index=False, name=None) if key in found]
    table = pd.DataFrame(dict(columns[key] for key in sorted(columns)), index=membership.names)
    return [found[key] for key in order], table if columns else None


def _calibration(model: Model) -> str | None:
    if not isinstance(model, Ensemble) or model.calibration is None:
        return None
    calibration = model.calibration
    words = f"Intervals of {calibration.level:.0%}, calibrated on {calibration.n} held-out training groups"
    return words + ("." if np.isfinite(calibration.factor) else ": too few to guarantee coverage.")
