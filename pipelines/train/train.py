"""``tadvae train``: one worker trains in this process; several are a Ray Train run, fed by Ray Data.

The files of a run: :mod:`tadvae.model.run_folder`.
"""

import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from pipelines.cluster.connection import is_cluster_named, mapper_for, ray_session
from pipelines.cluster.ray_log import say
from pipelines.train.alone import train_alone
from pipelines.train.checkpoints import require_own_checkpoints
from pipelines.train.phases import phases
from pipelines.train.step_log import StepLog
from pipelines.train.trackers import check_trackers, trackers
from tadvae.base.filesystem import absolute
from tadvae.base.lock import locked
from tadvae.base.terminal import print_text
from tadvae.data.reader import Mapper, loop, verify_shards
from tadvae.data.splits import TRAIN, VALIDATION
from tadvae.data.store_of_model import StoreOfModel
from tadvae.data.vocabulary import Vocabulary
from tadvae.model.run_folder import RunFolder
from tadvae.settings.experiment import ExperimentConfig
from tadvae.store.reader import Store
from tadvae.training.begin_run import begin_run
from tadvae.training.prepare import prepare_training

if TYPE_CHECKING:
    from ray.train import UserCallback


def train(
    store_path: str,
    out: str,
    config: ExperimentConfig | None,
    *,
    workers: int | tuple[int, int] = 1,
    gpu: bool = False,
    resume: bool = False,
    callbacks: "Sequence[UserCallback]" = (),
    progress: bool = True,
    of_sweep: bool = False,
) -> RunFolder:
    """Train one model on a whole store; returns the run's folder.

    The same call again goes on with a run that was interrupted, and returns at once from one that is done.

    Parameters
    ----------
    config
        None to resume: a run goes on with the config that it began with.
    workers
        How many, or the fewest and the most: the run then takes what the cluster has, grows with it, and goes
        on with fewer where nodes are lost.
    callbacks
        Called on Ray Train's controller, for whoever wants to follow the run's reports.
    progress
        Show the steps on standard error.
    of_sweep
        A sweep holds the lock of its folder and has verified the store: neither is done again.

    Raises
    ------
    UserError
        For bad input, and where workers fail more often than the run survives.
    """
    store_path, out = absolute(store_path), absolute(out)  # workers run in other folders
    run = RunFolder(out)
    stored = Store.open(store_path)
    config, resume = _settings(run, stored, config, resume)
    if not (resume and run.is_finished):
        if progress:
            check_trackers(run, config)
        with nullcontext() if of_sweep else locked(run.place):
            # another command may have ended meanwhile
            config, resume = _settings(run, stored, config, resume)
            if not (resume and run.is_finished):
                places = {"run": out, "store": store_path}
                _train(run, stored, places, config, workers, gpu, resume, callbacks, progress, not of_sweep)
                return run
    print_text(f"{run}: this run is finished, nothing is left to do")
    return run


def _settings(
    run: RunFolder, store: Store, config: ExperimentConfig | None, resume: bool
) -> tuple[ExperimentConfig, bool]:
    """The settings to train with, and whether a run goes on; nothing is written."""
    if not resume:
        config = (config or ExperimentConfig()).located()
        seen = store if config.origin is None else _of_run(run, store)
        resume = run.is_begun_with(config, seen.manifest.vocabulary_hash)
    if resume or config is None:
        return run.config_to_resume(_of_run(run, store).manifest.vocabulary_hash), True
    return config, False


def _of_run(run: RunFolder, store: Store) -> Store:
    """The store in the terms of a run that was begun from a trained model."""
    if not run.is_begun or run.about().get("origin") is None:
        return store
    return StoreOfModel(store, Vocabulary.load(run.model))


def _train(
    run: RunFolder,
    store: Store,
    places: dict[str, str],
    config: ExperimentConfig,
    workers: int | tuple[int, int],
    gpu: bool,
    resume: bool,
    callbacks: "Sequence[UserCallback]",
    progress: bool,
    verify: bool,
) -> None:
    fewest = workers[0] if isinstance(workers, tuple) else workers
    alone = _needs_no_ray(run, workers, gpu, callbacks)
    with nullcontext() if alone else ray_session(min_cpus=fewest, gpus=fewest if gpu else 0):
        mapper = loop if alone else mapper_for(store.n_bytes)
        store = _of_run(run, store)
        if verify:
            verify_shards(store, store.bags, mapper)
        if resume:
            require_own_checkpoints(run)
        else:
            store = _begin(run, store, places["store"], config, workers, gpu, mapper)
        n_bags, called = run.about()["bags"], time.time()
        if progress and not alone:
            say(f"starting {fewest} training worker{'' if fewest == 1 else 's'}…")
        with StepLog(run, n_bags, config.train.epochs, trackers(run, config)) if progress else nullcontext():
            if alone:
                train_alone(run, store)
            else:
                from pipelines.train.on_ray import train_on_ray  # seconds, which one worker need not wait

                train_on_ray(run, places, workers, gpu, callbacks)
    if progress and (spent := phases(run, called)) is not None:
        print_text(spent)


def _needs_no_ray(
    run: RunFolder, workers: int | tuple[int, int], gpu: bool, callbacks: Sequence[Any]
) -> bool:
    """Whether this process can train the run: one worker on a CPU, no cluster, no run of Ray Train's."""
    on_this_machine = workers == 1 and not gpu and not is_cluster_named()
    return on_this_machine and not callbacks and not run.checkpoints.are_of_ray_train


def _begin(
    run: RunFolder,
    store: Store,
    store_path: str,
    config: ExperimentConfig,
    workers: int | tuple[int, int],
    gpu: bool,
    mapper: Mapper,
) -> Store:
    """Check everything, then write the run's folder; the store in the terms of the run's model."""
    prepared = prepare_training(store, config, mapper)
    atlas = not (prepared.groups["perturbation_name"] != "control").any()
    if set(prepared.groups["part"]) <= {TRAIN, VALIDATION} and config.split.kind != "none" and not atlas:
        print_text(
            f"{run}: split.kind={config.split.kind} holds nothing out of this store, so nothing can be "
            "compared later; --set split.kind=single holds out targets.",
            sys.stderr,
        )
    begin_run(run, store_path, config, prepared, workers, gpu)
    return prepared.store
