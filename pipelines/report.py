"""``tadvae report``: a run's folder in, one page out."""

from pipelines.cluster.connection import mapping
from pipelines.evaluate import evaluate_run
from tadvae.base.errors import UserError
from tadvae.base.filesystem import Location
from tadvae.data.store_of_model import open_store
from tadvae.report.data import Report
from tadvae.report.gather import Run, gather
from tadvae.report.page import page
from tadvae.store.manifest import MANIFEST
from tadvae.store.reader import Store


def report_run(run_path: str, out: str, store_path: str | None = None) -> Report:
    """Write the page of a finished run or ensemble; returns what it shows.

    A run that was not evaluated is evaluated first, where its store is.

    Parameters
    ----------
    store_path
        Where the run's store is now; None: where it was. A page without a store says what it lacks.

    Raises
    ------
    UserError
        For a run that is not finished, or a store that is not the run's.
    """
    if not out.endswith(".html"):
        raise UserError(f"{out}: expected a file name that ends in .html.")
    run = Run.load(run_path)
    store = _store_of(run, store_path)
    if store is None:
        report = gather(run, None)
    else:
        with mapping(store.n_bytes) as mapper:
            if run.folder.scores() is None and not run.held_out.empty:
                evaluate_run(run_path, store_path=store_path)
            report = gather(run, store, mapper)
    Location.of(out).write_text(page(report))
    return report


def _store_of(run: Run, store_path: str | None) -> Store | None:
    """The run's store; None where it was not named and is not where it was."""
    if store_path is None and not (Location.of(run.started["store"]) / MANIFEST).exists():
        return None
    store = open_store(store_path or run.started["store"], run.model.vocabulary)
    expected = run.model.vocabulary.hash
    if store.manifest.vocabulary_hash != expected:
        raise UserError(
            f"{store.folder}: a store of another gene vocabulary ({store.manifest.vocabulary_hash}) than the "
            f"model's ({expected}); give the store of the run with --store."
        )
    return store
