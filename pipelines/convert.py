"""``tadvae convert``: many ``.h5ad`` files → one cell store, in this process or as Ray tasks.

There are two rounds of independent tasks (see :mod:`tadvae.store.writer`): every chunk of source rows is
written sorted by target shard, then the rows of every shard are collected. On a disk, the store is built in
``STORE.partial``, which is renamed at the end; on an object store it is built in place and becomes a store
when the manifest is written, which is the last step. An interrupted conversion of the same spec continues.

Where the spec leaves out escaped cells, all cells are converted first (``unfiltered``, deleted at the end);
the probabilities of the quality control come from that store.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np

from pipelines.cluster.connection import session_if_needed
from pipelines.cluster.tasks import run_tasks
from tadvae.base.checksums import SUMS
from tadvae.base.errors import UserError
from tadvae.base.filesystem import Location
from tadvae.base.lock import Lock, locked
from tadvae.cells.moments import Moments
from tadvae.screen_qc.check import check_screens
from tadvae.screen_qc.thresholds import QcConfig
from tadvae.store.conversion import StorePlan, plan_store
from tadvae.store.manifest import GUIDES, LABELS, MANIFEST, Manifest
from tadvae.store.reader import Store
from tadvae.store.spec import load_spec
from tadvae.store.tables import finish_store
from tadvae.store.values import ValuesError
from tadvae.store.writer import read_spilled_moments, spill_chunk, write_shard

MARK = "conversion.txt"
"""File with the fingerprint of the conversion that an unfinished store belongs to."""
UNFILTERED = "unfiltered"
"""Folder of an unfinished store with the store of all cells, of which some are left out."""


def convert(spec_path: str, out: str, tasks_at_once: int | None = None) -> Manifest:
    """Convert the files that ``spec_path`` lists into a store at ``out`` (a path or URL).

    Raises
    ------
    UserError
        For bad input; then neither ``out`` nor a partial store is left.
    """
    store = Location.of(out)
    _require_new(store)
    spec = load_spec(spec_path)
    partial = store.sibling(".partial") if store.is_local else store
    try:
        plan = plan_store(spec)
    except ValuesError:  # what an interrupted conversion has written of them is of no use
        with suppress(UserError):
            _require_own(partial)
            partial.delete()
        raise
    _require_own(partial)
    with locked(partial) as lock, session_if_needed(plan.n_bytes):
        try:
            _require_new(store)  # another conversion may have ended meanwhile
            _start_or_continue(partial, plan)
            if any(dataset.qc and dataset.qc.min_perturbed for dataset in spec.datasets):
                plan = plan_store(spec, _probabilities(plan, partial / UNFILTERED, tasks_at_once))
            manifest = _run(plan, partial, tasks_at_once)
            _publish(partial, store, lock)
        except UserError:
            with suppress(UserError):  # storage that cannot be written may not allow deleting either
                partial.delete()
            raise
    return manifest


def _probabilities(plan: StorePlan, folder: Location, tasks_at_once: int | None) -> dict[int, np.ndarray]:
    """By dataset, the probabilities that cells are perturbed, in the order of the plan's labels."""
    if not (folder / MANIFEST).exists():
        for dataset in plan.datasets:
            (folder / f"spill/{dataset.spec.name}").make_folder()
        _run(plan, folder, tasks_at_once)
    found = check_screens(Store.open(folder), QcConfig()).probability
    return {
        dataset.index: found[dataset.index][dataset.layout.position]
        for dataset in plan.datasets
        if dataset.spec.qc is not None and dataset.spec.qc.min_perturbed is not None
    }


def _run(plan: StorePlan, partial: Location, tasks_at_once: int | None) -> Manifest:
    chunks = [
        [(span, partial / f"spill/{dataset.spec.name}/chunk-{i:05d}") for i, span in enumerate(spans)]
        for dataset in plan.datasets
        for spans in [dataset.chunks(plan.spec.layout.chunk_rows)]
    ]
    calls: list[tuple[Callable[..., Any], tuple]] = [
        (spill_chunk, (plan.datasets[d], start, stop, place))
        for d in range(len(chunks))
        for (start, stop), place in chunks[d]
        if read_spilled_moments(place) is None
    ]
    run_tasks("reading cells", calls, tasks_at_once)

    moments, calls = [], []
    for d, dataset in enumerate(plan.datasets):
        places = [place for _, place in chunks[d]]
        parts = [part for part in map(read_spilled_moments, places) if part is not None]
        moments.append(Moments.sum(parts, dataset.n_vocabulary))
        folder = partial / f"cells/dataset={dataset.spec.name}"
        folder.make_folder()
        for shard in range(len(dataset.layout.shard_rows)):
            out = folder / f"part-{shard:05d}.parquet"
            calls.append((write_shard, (dataset, shard, places, out)))
    results = iter(run_tasks("writing shards", calls, tasks_at_once))
    shards = [[next(results) for _ in dataset.layout.shard_rows] for dataset in plan.datasets]
    return finish_store(plan, moments, shards, partial)


def _require_new(store: Location) -> None:
    if (store if store.is_local else store / MANIFEST).exists():
        raise UserError(f"{store}: already exists; name another folder with --out, or delete this one first.")


def _require_own(partial: Location) -> None:
    """Raise a UserError for a folder that no conversion has made, because it would be deleted."""
    own = {"spill", "cells", "datasets", "genes.parquet", "bags.parquet", "perturbations.parquet"}
    own |= {"spec.yaml", LABELS, GUIDES, SUMS, MANIFEST, MARK, UNFILTERED}
    others = [name for name in partial.names() if name not in own and not name.endswith(".tmp")]
    if others:
        raise UserError(
            f"{partial}: already exists and holds other files (such as {others[0]}); name another folder "
            "with --out."
        )


def _start_or_continue(partial: Location, plan: StorePlan) -> None:
    """Keep the chunks of an interrupted conversion of the same input; delete everything else."""
    mark = partial / MARK
    same = mark.exists() and mark.read_text() == plan.fingerprint()
    for name in partial.names():
        if not same or name not in ("spill", MARK, UNFILTERED):
            (partial / name).delete()
    if same:
        return
    for dataset in plan.datasets:
        (partial / f"spill/{dataset.spec.name}").make_folder()
    mark.write_text(plan.fingerprint())


def _publish(partial: Location, store: Location, lock: Lock) -> None:
    """Turn the finished ``.partial`` folder into the store."""
    lock.require()
    (partial / "spill").delete()
    (partial / UNFILTERED).delete()
    (partial / MARK).delete()
    if partial != store:
        with lock.moving_to(store), store.reachable():
            store.filesystem.move(partial.path, store.path)
