"""``tadvae tune run``: trains with many settings; trials with better results train longer.

Also the entry point of a job: ``python -m tune run STORE --out SWEEP``.
"""

import json
import logging
import os
from collections.abc import Mapping, Sequence

import ray
import ray.tune

from pipelines.cluster.connection import mapper_for, ray_session, require_cleaning
from tadvae import __version__
from tadvae.base.documents import parse_json
from tadvae.base.errors import UserError
from tadvae.base.filesystem import Location, absolute
from tadvae.base.lock import locked
from tadvae.base.terminal import print_text
from tadvae.data.reader import training_bags, verify_shards
from tadvae.store.reader import Store
from tune.config import DEFAULT_SPACE, SweepConfig
from tune.journal import Journal
from tune.preflight import check_settings, check_trials
from tune.progress import Heartbeat, progress
from tune.reclaim import Reclaim
from tune.records import ABOUT, SWEEP, TRIALS, TrialRecord, best_of, read_records, read_sweep
from tune.search import Halving, TrainAll, optuna_search
from tune.trial import beneath, run_trial

TUNE_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the journal writes all records
    "RAY_AIR_NEW_OUTPUT": "0",  # the new output prints a banner even with verbose=0
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # the command line handles it, as for all commands
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # checkpoints of Ray Tune are pickles, which are not used
}
DRIVER_CPUS = 0.01
"""CPUs of the driver of a trial with several workers, which only waits; Ray Tune does not accept 0."""


def run_sweep(
    store_path: str, out: str, config: SweepConfig | None, *, resume: bool = False, trials: int | None = None
) -> list[TrialRecord]:
    """Run a sweep, or resume an interrupted one; return the records of all trials.

    Parameters
    ----------
    config
        Settings of the sweep; None to resume, because a sweep is resumed with its own settings.
    trials
        With ``resume``: a new number of trials, which includes the existing ones.

    Raises
    ------
    UserError
        For bad input, before anything is written.
    """
    store_path, out = absolute(store_path), absolute(out)
    sweep = Location.of(out)
    for name, value in TUNE_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with locked(sweep):
        _run(store_path, out, config, resume, trials)
    return read_records(sweep)


def _run(store_path: str, out: str, config: SweepConfig | None, resume: bool, trials: int | None) -> None:
    sweep, store = Location.of(out), Store.open(store_path)
    if resume:
        config = _config_to_resume(sweep, store)
        if trials is not None and config.search == "grid":
            raise UserError(f"{sweep}: a grid has one trial per combination; leave out --trials.")
        config = config if trials is None else config.model_copy(update={"trials": trials})
    elif sweep.names():
        raise UserError(
            f"{sweep}: already holds a sweep; name another folder with --out, or continue it with --resume."
        )
    config = (config or SweepConfig.load(DEFAULT_SPACE)).located()
    to_check = check_settings(config)
    # it warns about files that it was told not to write
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    n_workers = config.workers * (config.max_concurrent or 1)
    with (
        Heartbeat(lambda: "still checking the store and the settings of the trials…") as heartbeat,
        ray_session(n_workers + 2, gpus=config.gpus * n_workers),
    ):
        if config.workers > 1:
            require_cleaning()
        mapper = mapper_for(store.n_bytes)
        verify_shards(store, store.bags, mapper)
        prepared = check_trials(store, to_check, mapper)
        split = config.experiment.split
        bags = training_bags(store, prepared.groups, split, config.experiment.stream.control_bags)
        cells = float(bags["n_cells"].sum())
        if split.kind == "cells":
            cells *= 1 - 1 / split.folds
        if not resume:
            _begin(sweep, store, store_path, config)
        earlier = read_records(sweep)
        _tune(store_path, out, config, earlier, cells, heartbeat)
    _write_best(sweep, config, read_records(sweep))


def _begin(sweep: Location, store: Store, store_path: str, config: SweepConfig) -> None:
    (sweep / TRIALS).make_folder()
    (sweep / SWEEP).write_text(config.to_yaml())
    about = {
        "tadvae_version": __version__,
        "store": store_path,
        "vocabulary_hash": store.manifest.vocabulary_hash,
    }
    (sweep / ABOUT).write_text(json.dumps(about, indent=1))


def _config_to_resume(sweep: Location, store: Store) -> SweepConfig:
    config = read_sweep(sweep)
    try:
        began = parse_json((sweep / ABOUT).read_text())["vocabulary_hash"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"{sweep / ABOUT}: missing or damaged ({type(error).__name__}); restore the file, or start "
            "another sweep."
        ) from None
    if began != store.manifest.vocabulary_hash:
        raise UserError(
            f"{sweep}: this sweep was started with a store of another gene vocabulary "
            f"({began}, this one has {store.manifest.vocabulary_hash}); resume with the same store."
        )
    return config


def _tune(
    store_path: str,
    out: str,
    config: SweepConfig,
    earlier: Sequence[TrialRecord],
    cells: float,
    heartbeat: Heartbeat,
) -> None:
    sweep = Location.of(out)
    ended = [record for record in earlier if record.status != "running"]
    left = config.n_trials - len(ended)
    if left <= 0:
        print_text(f"all {config.n_trials} trials have ended; nothing to do")
        return
    if earlier:
        print_text(f"{len(ended)} trials have ended, {len(earlier) - len(ended)} continue, {left} to run")
    scheduler: Halving | TrainAll = TrainAll()
    if config.scheduler is not None:
        scheduler = Halving(config, cells)
        for record in ended:
            if record.status != "failed":
                scheduler.replay(record)
    at_once = config.max_concurrent or room(ray.cluster_resources(), config)
    journal = Journal(sweep, config, earlier, scheduler)
    heartbeat.line = lambda: progress(journal.now(), config, at_once)
    trainable = ray.tune.with_parameters(
        run_trial,
        store=store_path,
        folder=beneath(out, TRIALS),
        metric=config.metric,
        workers=config.workers,
        gpu=config.gpus > 0,
    )
    (sweep / "tune").delete()
    reclaim = Reclaim()
    tuner = ray.tune.Tuner(
        ray.tune.with_resources(trainable, resources(config)),
        tune_config=ray.tune.TuneConfig(
            search_alg=optuna_search(config, earlier),
            scheduler=scheduler,
            num_samples=left,
            max_concurrent_trials=at_once,
            trial_name_creator=_name,
            trial_dirname_creator=_name,
        ),
        run_config=ray.tune.RunConfig(
            name="tune",
            storage_path=sweep.path,
            storage_filesystem=sweep.filesystem,
            callbacks=[journal, reclaim],
            verbose=0,
        ),
    )
    tuner.fit()
    reclaim.finish()
    (sweep / "tune").delete()


def resources(config: SweepConfig) -> dict[str, float]:
    """What a trial asks Ray for itself; the workers of a trial of several ask for their own."""
    if config.workers > 1:
        return {"CPU": DRIVER_CPUS}
    return {"CPU": 1} | ({"GPU": config.gpus} if config.gpus else {})


def room(cluster: Mapping[str, float], config: SweepConfig) -> int:
    """Number of trials that can run at the same time, at least 1.

    Two CPUs are left to the tasks that read the store. A trial's part of a GPU is on one GPU.
    """
    workers = int(cluster.get("CPU", 0) - 2)
    if config.gpus:
        workers = min(workers, int(cluster.get("GPU", 0)) * int(1 / config.gpus + 1e-6))
    return max(workers // config.workers, 1)


def _name(trial: ray.tune.experiment.Trial) -> str:
    return f"{trial.config['number']:04d}"


def _write_best(sweep: Location, config: SweepConfig, records: Sequence[TrialRecord]) -> None:
    """Write ``SWEEP/best.yaml``: the settings of the best trial, for ``tadvae train --config``."""
    best = best_of(list(records), config)
    if best is not None:
        (sweep / "best.yaml").write_text(best_yaml(config, best))


def best_yaml(config: SweepConfig, best: TrialRecord) -> str:
    """Config of a trial without validation, so that the final training uses all perturbations."""
    experiment = config.trial_experiment(config.experiment, best.values)
    validation = experiment.validation.model_copy(update={"every": None})
    note = f"# trial {best.number:04d}: {config.metric} {best.value(config.metric):.4f}\n"
    return note + experiment.model_copy(update={"validation": validation}).to_yaml()
