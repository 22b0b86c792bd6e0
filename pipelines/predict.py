"""``tadvae predict``: predict cells and write them to an ``.h5ad`` file."""

import tempfile
from pathlib import Path
from typing import Literal

import anndata as ad

from tadvae.base.errors import UserError
from tadvae.base.filesystem import Location
from tadvae.model.device import chosen_device
from tadvae.model.ensemble import load_model
from tadvae.store.h5ad import read_adata


def predict_to(
    run: str,
    target: str,
    context: str,
    out: str,
    *,
    controls_path: str | None = None,
    dataset: str | None = None,
    values: Literal["counts", "log1p"] = "counts",
    gpu: bool = False,
) -> ad.AnnData:
    """Predict with a run or an ensemble, write one ``.h5ad`` atomically, and return it."""
    place = Location.of(out)
    if place.exists():
        raise UserError(f"{place}: already exists; name another file with --out.")
    if not place.name.endswith(".h5ad"):
        raise UserError(f"{place}: expected a file name that ends in .h5ad.")
    model = load_model(run, chosen_device(gpu))
    controls = None if controls_path is None else read_adata(controls_path, "--controls")
    adata = model.predict(target, context=context, dataset=dataset, controls=controls, values=values)
    with tempfile.TemporaryDirectory() as folder:  # the HDF5 library can only write to local files
        local = Path(folder) / place.name
        adata.write_h5ad(local)
        place.write_bytes(local.read_bytes())
    return adata
