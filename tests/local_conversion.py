"""A conversion in this process, without Ray: what ``tadvae`` does by itself."""

from pathlib import Path

from tadvae.base.filesystem import Location
from tadvae.cells.moments import Moments
from tadvae.store.conversion import plan_store
from tadvae.store.reader import Store
from tadvae.store.spec import load_spec
from tadvae.store.tables import finish_store
from tadvae.store.writer import read_spilled_moments, spill_chunk, write_shard


def convert_locally(spec: str | Path, folder: Location) -> Store:
    """Convert one spill chunk after the other."""
    plan = plan_store(load_spec(spec))
    moments, shards = [], []
    for dataset in plan.datasets:
        spans = dataset.chunks(plan.spec.layout.chunk_rows)
        chunks = [folder / f"spill/{dataset.spec.name}-{i}" for i in range(len(spans))]
        for (start, stop), chunk in zip(spans, chunks, strict=True):
            spill_chunk(dataset, start, stop, chunk)
        parts = [part for part in map(read_spilled_moments, chunks) if part is not None]
        moments.append(Moments.sum(parts, dataset.n_vocabulary))
        cells = folder / f"cells/dataset={dataset.spec.name}"
        shards.append(
            [
                write_shard(dataset, i, chunks, cells / f"part-{i:05d}.parquet")
                for i in range(len(dataset.layout.shard_rows))
            ]
        )
    finish_store(plan, moments, shards, folder)
    (folder / "spill").delete()
    return Store.open(folder)
