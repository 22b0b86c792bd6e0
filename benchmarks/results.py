"""Train, score and store what docs/results.md shows, and write it: ``make results``.

Every fold of every split of a study is one JSON file in ``benchmarks/results``: scores of an ensemble with
calibrated intervals, of its members and of all baselines. The published models (presets ``dvae`` and
``sena``), which take ten times as long and do not depend on the settings of the ensemble, have files of their
own, for the first folds of each split. What is stored is not done again; models in the middle of a fold are
kept in ``benchmarks/work``::

    python benchmarks/results.py --study carpool --seeds 5 --epochs 50
    python benchmarks/results.py --only-write

``--study structure`` runs the studies of :data:`STRUCTURE`, each a script of its own that stores one file or
one folder; files that exist are not made again.
"""

import argparse
import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from results_page import write_page
from stored import store_once
from studies import DATA, STUDIES, Split, Study, make_store

from pipelines.cluster.connection import ray_map, ray_session
from pipelines.train.ensemble import fold_runs, load_run, train_models
from tadvae.base.filesystem import Location
from tadvae.data.reader import training_bags
from tadvae.data.splits import TEST, split_groups
from tadvae.evaluation.evaluate import METHOD, evaluate
from tadvae.model.ensemble import Ensemble
from tadvae.settings.experiment import ExperimentConfig
from tadvae.settings.presets import PRESETS
from tadvae.store.reader import Store
from tadvae.training.calibrate import calibrate, plan_calibration
from tadvae.training.prepare import shifts_out_of_reach

HERE = Path(__file__).parent
PUBLISHED = ("dvae", "sena")
STRUCTURES = "structure"
PUBLISHED_SEEDS = 1
CALIBRATION_FOLDS, SEEDS_PER_FOLD = 4, 2
STRUCTURE = {
    "contexts/known_drugs.json": ["contexts.py", "--only", "drugs", "--json"],
    "contexts/known_drugs_seed_1.json": ["contexts.py", "--only", "drugs", "--seed", "1", "--json"],
    "contexts/known_drugs_tahoe.json": ["contexts.py", "--only", "drugs", "--study", "tahoe", "--json"],
    "contexts/unseen_types.json": ["contexts.py", "--only", "types", "--json"],
    "contexts/unseen_targets.json": ["unseen_targets.py", "--json"],
    "truth.json": [
        *("truth.py", "--seeds", "5", "--strategies", "agreement", "linear", "members", "hard"),
        *("--set", "train.epochs=10", "--json"),
    ],
    "panel_transfer": [
        *("panel_transfer.py", "--halvings", "4", "--seeds", "5", "--epochs", "3"),
        *("--masking", "agreement", "members", "linear", "--out"),
    ],
    "fine_tuning": ["fine_tuning.py", "--out"],
    "doses.json": ["doses.py", "--seeds", "2", "--out"],
    "quality_control.json": ["quality_control.py", "--json"],
    "batches.json": ["batches.py", "--out"],
    "paper_table": [
        *("paper_table.py", "--study", "simulated", "norman_mcfaline", "datlinger", "panels"),
        *("--seeds", "3", "--out"),
    ],
} | {
    f"quality_{study}_{masking}.json": [
        *("quality.py", "--only", study, "--seeds", str(seeds)),
        *(word for each in (*settings, f"model.pathway.masking={masking}") for word in ("--set", each)),
        "--json",
    ]
    for study, seeds, settings, maskings in (
        ("norman_mcfaline", 2, ["train.epochs=30"], ("agreement", "members", "linear", "hard")),
        ("datlinger", 2, ["train.epochs=30"], ("agreement", "hard")),
        ("carpool", 1, [], ("members", "hard")),
    )
    for masking in maskings
}
"""Scripts of the studies of structure with their options, by what they write; it is the last option."""


def published(base: ExperimentConfig) -> dict[str, ExperimentConfig]:
    """Published models as published, on the genes, pathways and split of ``base``."""
    result = {}
    for name in PUBLISHED:
        preset = PRESETS[name]()
        shared = {"seed": base.seed, "preprocess": base.preprocess, "split": base.split}
        if preset.pathways.units is None:  # else hidden units in place of pathways
            shared["pathways"] = base.pathways
        result[name] = preset.model_copy(update=shared)
    return result


def trainable(
    store: Store, groups: pd.DataFrame, models: dict[str, ExperimentConfig]
) -> tuple[dict[str, ExperimentConfig], list[str]]:
    """Models that can learn something from the training side of a split, and why the others cannot."""
    kept, notes = {}, []
    for name, config in models.items():
        bags = training_bags(store, groups, config.split)
        reason = shifts_out_of_reach(bags, store.control, config)
        if reason is None:
            kept[name] = config
        else:
            notes.append(f"{name}: not trained, {reason.split(';')[0]}")
    return kept, notes


def run_fold(
    store_path: Path, work: Path, config: ExperimentConfig, seeds: list[int], calibrated: bool
) -> dict:
    """Train an ensemble on one fold, with intervals if ``calibrated``, and score it beside the baselines."""
    store, folder = Store.open(str(store_path)), Location.of(work)
    groups = split_groups(store, config.split)
    runs = {f"tadvae/seed-{seed}": config.model_copy(update={"seed": seed}) for seed in seeds}
    plan, folds = None, []
    if calibrated:
        plan = plan_calibration(store, groups, config.split, CALIBRATION_FOLDS)
        folds = fold_runs(config, plan, seeds[:SEEDS_PER_FOLD])
        runs |= {name: each for fold in folds for name, each in fold.items()}
    train_models(str(store_path), folder, runs)
    members = [load_run(folder / f"tadvae/seed-{seed}")[0] for seed in seeds]
    calibration = None
    if plan is not None:
        models = [[load_run(folder / name) for name in fold] for fold in folds]
        calibration = calibrate(store, groups, members[0].vocabulary, plan, models, mapper=ray_map)
    against = {f"tadvae, seed {seed}": (model, groups) for seed, model in zip(seeds, members, strict=True)}
    scores = evaluate(store, groups, Ensemble(members, calibration), rivals=against, mapper=ray_map)
    return {"notes": scores.notes, "abstained": scores.abstained, "scores": compact(scores.table)}


def run_published(store_path: Path, work: Path, config: ExperimentConfig, seeds: list[int]) -> dict:
    """Train the published models on the fold of ``config``, an ensemble each, and score them."""
    store, folder = Store.open(str(store_path)), Location.of(work)
    groups = split_groups(store, config.split)
    models, refused = trainable(store, groups, published(config))
    runs = {
        f"{name}/seed-{seed}": each.model_copy(update={"seed": seed})
        for name, each in models.items()
        for seed in seeds
    }
    train_models(str(store_path), folder, runs)
    notes, tables = refused, []
    for name in models:
        ensemble = Ensemble([load_run(folder / f"{name}/seed-{seed}")[0] for seed in seeds])
        scores = evaluate(store, groups, ensemble, mapper=ray_map)
        tables.append(scores.table[scores.table["method"] == METHOD].assign(method=name))
        notes += [f"{name}{note.removeprefix(METHOD)}" for note in scores.notes if note.startswith(METHOD)]
    return {"notes": notes, "scores": compact(pd.concat(tables)) if tables else None}


def compact(table: pd.DataFrame) -> dict:
    """Scores by metric and method, in the order of the groups; six digits, null where undefined."""
    keys = ["dataset", "context", "perturbation", "category"]
    groups = table[keys].drop_duplicates().reset_index(drop=True)
    number = {key: i for i, key in enumerate(groups.itertuples(index=False, name=None))}
    row = [number[key] for key in table[keys].itertuples(index=False, name=None)]
    result: dict = {"groups": groups.to_dict("split")["data"], "values": {}}
    for (metric, method), part in table.assign(row=row).groupby(["metric", "method"], sort=False):
        values = np.full(len(groups), np.nan)
        values[part["row"]] = part["value"]
        cells = [None if np.isnan(v) else float(f"{v:.6g}") for v in values]
        result["values"].setdefault(metric, {})[method] = cells
    return result


def run_study(name: str, study: Study, arguments: argparse.Namespace) -> None:
    work = arguments.work / name
    work.mkdir(parents=True, exist_ok=True)
    store, settings = make_store(study, work)
    seeds = list(range(arguments.seeds))
    epochs = arguments.epochs or study.epochs
    for kind, split in study.splits.items():
        if arguments.split not in (None, kind):
            continue
        for fold in range(min(split.folds, arguments.max_folds or split.folds)):
            about = {"study": name, "split": kind, "fold": fold, "folds": split.folds}
            held = of_fold(split, fold)
            if study.part_of is not None:
                whole, _ = make_store(STUDIES[study.part_of], arguments.work / study.part_of)
                held = same_groups(Store.open(str(whole)), held, Store.open(str(store)))
            extra = [*split.extra, held, f"train.epochs={epochs}"]
            config = ExperimentConfig.load(None, [*settings, *extra])
            folder = work / f"{kind}-fold-{fold}-epochs-{epochs}"
            results = arguments.out / name
            of_ours = {"seeds": seeds, "epochs": epochs, "settings": [*study.settings, *split.extra]}
            place = results / f"{kind}-fold-{fold}.json"
            store_once(
                place, about | of_ours, partial(run_fold, store, folder, config, seeds, split.calibrated)
            )
            if study.part_of is None and fold < arguments.published_folds:
                some = seeds[:PUBLISHED_SEEDS]
                of_theirs = {"seeds": some, "models": {n: c.summary for n, c in published(config).items()}}
                place = results / "published" / place.name
                store_once(place, about | of_theirs, partial(run_published, store, folder, config, some))
            shutil.rmtree(folder, ignore_errors=True)


def run_structure(out: Path) -> None:
    """Run the studies of structure whose results are missing; a folder's script resumes by itself."""
    for name, (script, *options) in STRUCTURE.items():
        place = out / name
        if place.is_file():
            print(f"{place}: already there", flush=True)
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, str(HERE / script), *options, str(place)], check=True)


def of_fold(split: Split, fold: int) -> str:
    return f"split={{{split.settings}, folds: {split.folds}, fold: {fold}}}"


def same_groups(whole: Store, held: str, part: Store) -> str:
    """The split of a part of the screens that holds out what ``held`` does of the whole."""
    groups = split_groups(whole, ExperimentConfig.load(None, [held]).split)
    names = {dataset.name for dataset in part.manifest.datasets}
    tested = groups[(groups["part"] == TEST) & groups["dataset_name"].isin(names)]
    return f"split={{kind: explicit, test: {json.dumps(sorted(set(tested['perturbation_name'])))}}}"


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--study", action="append", choices=[*STUDIES, STRUCTURES], help="default: all")
    parser.add_argument("--split", help="only this split of each study")
    parser.add_argument("--seeds", type=int, default=5, help="members of each ensemble")
    parser.add_argument("--epochs", type=int, help="of tadvae; default: the study's own")
    parser.add_argument("--max-folds", type=int, help="only the first folds of each split")
    parser.add_argument("--published-folds", type=int, default=1, help="folds with the published models")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--work", type=Path, default=HERE / "work")
    parser.add_argument("--page", type=Path, default=HERE.parent / "docs" / "results.md")
    parser.add_argument("--only-write", action="store_true", help="write the page from what is stored")
    arguments = parser.parse_args(given)
    if not arguments.only_write:
        chosen = arguments.study or [*STUDIES, STRUCTURES]
        if STRUCTURES in chosen and DATA.is_dir():
            run_structure(arguments.out)
        with ray_session():
            for name in (each for each in chosen if each != STRUCTURES):
                if not STUDIES[name].at_hand:
                    print(f"{name}: left out, its data are not at {DATA}", flush=True)
                    continue
                run_study(name, STUDIES[name], arguments)
    write_page(arguments.out, arguments.page)
    print(f"{arguments.page}: written")


if __name__ == "__main__":
    main()
