"""``tadvae train --seeds N``: members and calibration models, one Ray task each.

A task trains one model in one process, so the cluster trains as many at once as it has CPUs, or GPUs
if each has one (or ``at_once``). Every model is a run's folder of its own; one that is finished is not
trained again.
"""

from collections.abc import Sequence

import pandas as pd

from pipelines.cluster.connection import mapper_for, ray_map, ray_session
from pipelines.cluster.tasks import run_tasks
from tadvae.base.errors import UserError
from tadvae.base.filesystem import Location, absolute
from tadvae.base.lock import locked
from tadvae.data.reader import verify_shards
from tadvae.data.splits import split_groups
from tadvae.data.store_of_model import open_store
from tadvae.model.device import chosen_device
from tadvae.model.run_folder import RunFolder
from tadvae.model.tadvae import TADVAE
from tadvae.settings.experiment import ExperimentConfig
from tadvae.store.reader import Store
from tadvae.training.begin_run import begin_run
from tadvae.training.calibrate import CalibrationPlan, calibrate, fold_configs, plan_calibration
from tadvae.training.fit import fit
from tadvae.training.prepare import Preparation, prepare_training
from tadvae.training.pretrained import store_for


def train_ensemble(
    store_path: str,
    out: str,
    config: ExperimentConfig | None,
    *,
    seeds: int = 5,
    calibration_folds: int = 4,
    seeds_per_fold: int = 2,
    at_once: int | None = None,
    gpu: bool = False,
    resume: bool = False,
) -> RunFolder:
    """Train an ensemble with intervals; returns its folder.

    Parameters
    ----------
    config
        Of the members; their seeds are ``config.seed`` and those after it. None to resume.
    seeds
        Members.
    calibration_folds
        Folds of the training perturbations that the intervals are calibrated on; 0: no intervals.
    seeds_per_fold
        Models trained without each fold.
    at_once
        Most models in training at one time; None: as the cluster has CPUs, or GPUs.
    gpu
        Train each model on a GPU of its own.

    Raises
    ------
    UserError
        For bad input; nothing has been written then.
    """
    store_path, out = absolute(store_path), absolute(out)
    folder = RunFolder(out)
    store = Store.open(store_path)
    with locked(folder.place):
        _train(
            folder, store, store_path, config, seeds, calibration_folds, seeds_per_fold, at_once, gpu, resume
        )
    return folder


def _train(
    folder: RunFolder,
    store: Store,
    store_path: str,
    config: ExperimentConfig | None,
    seeds: int,
    calibration_folds: int,
    seeds_per_fold: int,
    at_once: int | None,
    gpu: bool,
    resume: bool,
) -> None:
    if resume:
        config = folder.config_to_resume_ensemble(store.manifest.vocabulary_hash)
        about = folder.ensemble()
    else:
        if folder.place.names():
            raise UserError(
                f"{folder}: already holds a run; name another folder with --out, or go on by --resume."
            )
        config = (config or ExperimentConfig()).located()
        about = {
            "store": store_path,
            "vocabulary_hash": store.manifest.vocabulary_hash,
            "members": [f"members/seed-{config.seed + i}" for i in range(seeds)],
            "calibration_folds": calibration_folds,
            "seeds_per_fold": min(seeds_per_fold, seeds),
        }
    store = store_for(store, config)
    groups = split_groups(store, config.split)
    folds = about["calibration_folds"]
    plan = plan_calibration(store, groups, config.split, folds) if folds else None
    runs = {
        name: config.model_copy(update={"seed": config.seed + i}) for i, name in enumerate(about["members"])
    }
    seeds_of_fold = [config.seed + i for i in range(about["seeds_per_fold"])]
    of_fold = [] if plan is None else fold_runs(config, plan, seeds_of_fold)
    runs |= {name: each for fold in of_fold for name, each in fold.items()}
    with ray_session(gpus=1 if gpu else 0):
        mapper = mapper_for(store.n_bytes)
        verify_shards(store, store.bags, mapper)
        if not resume:
            # what cannot be trained fails here, before all writing
            prepare_training(Store.open(store_path), config, mapper)
            folder.begin_ensemble(config, about)
        train_models(store_path, folder.place, runs, at_once, gpu)
        if plan is not None and not folder.is_calibrated:
            _calibrate(store, folder, groups, plan, [list(fold) for fold in of_fold], about["members"][0])


def fold_runs(
    config: ExperimentConfig, plan: CalibrationPlan, seeds: Sequence[int]
) -> list[dict[str, ExperimentConfig]]:
    """Configs of the models that calibrate, fold by fold, by the names of their runs."""
    return [
        {f"calibration/fold-{f}-seed-{each.seed}": each for each in fold}
        for f, fold in enumerate(fold_configs(config, plan, seeds))
    ]


def train_models(
    store_path: str,
    folder: Location,
    runs: dict[str, ExperimentConfig],
    at_once: int | None = None,
    gpu: bool = False,
) -> None:
    """Train the runs that are not finished, a task each; their names are folders inside ``folder``."""
    left = [name for name in runs if not RunFolder(folder / name).is_finished]
    calls = [(train_one, (store_path, str(folder / name), runs[name].to_yaml(), gpu)) for name in left]
    done = len(runs) - len(left)
    run_tasks("training models", calls, at_once or len(runs), already=done, gpus=1 if gpu else 0)


def train_one(store_path: str, out: str, config_yaml: str, gpu: bool = False) -> None:
    """Train one model in this process and write its run's folder; the weights come last."""
    import torch

    torch.set_num_threads(1)  # a task has one CPU
    config = ExperimentConfig.load_text(config_yaml, f"{out}/config.yaml")
    run = RunFolder(out)
    model, groups = fit(Store.open(store_path), config, chosen_device(gpu))
    store = open_store(store_path, model.vocabulary)
    prepared = Preparation(groups, model.vocabulary, model.controls, model.effects, store)
    begin_run(run, store_path, config, prepared, workers=1, gpu=gpu)
    model.save_pretrained(str(run.model))


def load_run(run: Location) -> tuple[TADVAE, pd.DataFrame]:
    """A run's model and its split."""
    return TADVAE.from_pretrained(str(run)), RunFolder(run).split()


def _calibrate(
    store: Store,
    folder: RunFolder,
    groups: pd.DataFrame,
    plan: CalibrationPlan,
    names: list[list[str]],
    member: str,
) -> None:
    models = [[load_run(folder.place / name) for name in fold] for fold in names]
    vocabulary = TADVAE.from_pretrained(str(folder.place / member)).vocabulary
    folder.write_calibration(calibrate(store, groups, vocabulary, plan, models, mapper=ray_map))
