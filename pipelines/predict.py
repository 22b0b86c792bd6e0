"""``tadvae predict``: predict cells and write them to an ``.h5ad`` file."""

import tempfile
import warnings
from pathlib import Path
from typing import Literal

import anndata as ad

from tadvae.base.errors import UserError
from tadvae.base.filesystem import Location
from tadvae.model.ensemble import load_model


def predict_to(
    run: str,
    target: str,
    context: str,
    out: str,
    *,
    controls_path: str | None = None,
    dataset: str | None = None,
    values: Literal["counts", "log1p"] = "counts",
) -> ad.AnnData:
    """Predict with a run or an ensemble, write one ``.h5ad`` atomically, and return it."""
    place = Location.of(out)
    if place.exists():
        raise UserError(f"{place}: already exists; name another file with --out.")
    if not place.name.endswith(".h5ad"):
        raise UserError(f"{place}: expected a file name that ends in .h5ad.")
    model = load_model(run)
    controls = None if controls_path is None else _read(controls_path)
    adata = model.predict(target, context=context, dataset=dataset, controls=controls, values=values)
    with tempfile.TemporaryDirectory() as folder:  # the HDF5 library can only write to local files
        local = Path(folder) / place.name
        adata.write_h5ad(local)
        place.write_bytes(local.read_bytes())
    return adata


def _read(path: str) -> ad.AnnData:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # anndata warns about old files
            return ad.read_h5ad(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; give an .h5ad of control cells with --controls.") from None
    except (OSError, KeyError, ValueError, TypeError):
        raise UserError(f"{path}: not an .h5ad file, or damaged; give a file written by anndata.") from None
