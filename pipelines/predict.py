"""``tadvae predict``: predict cells, or mean profiles under many perturbations, and write them to a file."""

from collections.abc import Sequence
from typing import Literal

import anndata as ad

from pipelines.cluster.progress import Steps
from tadvae.base.errors import UserError
from tadvae.base.filesystem import Location
from tadvae.model.combinations import Combinations
from tadvae.model.device import chosen_device
from tadvae.model.ensemble import load_model
from tadvae.model.mean_table import MeanTable
from tadvae.model.predict_many import Written, write_many
from tadvae.report.prediction import prediction_of
from tadvae.report.prediction_page import prediction_page
from tadvae.store.h5ad import read_adata, write_adata


def predict_to(
    run: str,
    target: str,
    context: str,
    out: str,
    *,
    controls_path: str | None = None,
    dataset: str | None = None,
    values: Literal["counts", "log1p"] = "counts",
    units: Literal["log1p", "counts"] = "log1p",
    page: str | None = None,
    dose: float | None = None,
    time: float | None = None,
    gpu: bool = False,
) -> ad.AnnData:
    """Predict with a run or an ensemble, write one ``.h5ad`` atomically, and return it.

    Parameters
    ----------
    page
        An HTML page of the prediction is written to this file; None: no page.
    """
    place = _new_file(out, ".h5ad")
    html = None if page is None else _new_file(page, ".html", option="--page")
    if html is not None and units == "counts":
        raise UserError("--page shows log1p values; leave out --as counts.")
    model = load_model(run, chosen_device(gpu))
    controls = None if controls_path is None else read_adata(controls_path, "--controls")
    adata = model.predict(
        target,
        context=context,
        dataset=dataset,
        controls=controls,
        values=values,
        units=units,
        dose=dose,
        time=time,
    )
    shown = None if html is None else prediction_page(prediction_of(model, adata))
    write_adata(adata, place)
    if html is not None and shown is not None:
        html.write_text(shown)
    return adata


def predict_many_to(
    run: str,
    asked: Combinations,
    out: str,
    *,
    contexts: Sequence[str] | None = None,
    datasets: Sequence[str] | None = None,
    controls_path: str | None = None,
    values: Literal["counts", "log1p"] = "counts",
    units: Literal["log1p", "counts"] = "log1p",
    gpu: bool = False,
) -> Written:
    """Predict mean profiles with a run or an ensemble, and write one ``.h5ad`` or ``.parquet`` atomically."""
    _new_file(out, ".h5ad", ".parquet")
    model = load_model(run, chosen_device(gpu))
    controls = None if controls_path is None else read_adata(controls_path, "--controls")
    table = MeanTable(
        model, asked, context=contexts, dataset=datasets, controls=controls, values=values, units=units
    )
    with Steps("predicted", len(table)) as steps:
        return write_many(table, out, steps.advance)


def _new_file(out: str, *ends: str, option: str = "--out") -> Location:
    """A file that does not exist yet, with one of these ends of its name."""
    place = Location.of(out)
    if place.exists():
        raise UserError(f"{place}: already exists; name another file with {option}.")
    if not place.name.endswith(ends):
        raise UserError(f"{place}: expected a file name that ends in {' or '.join(ends)}.")
    return place
