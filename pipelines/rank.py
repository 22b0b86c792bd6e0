"""``tadvae rank``: which perturbations move control cells towards a wanted state."""

from pathlib import Path
from typing import Literal

import anndata as ad

from tadvae.base.errors import UserError
from tadvae.base.filesystem import Location
from tadvae.evaluation.ranking import MOST_CELLS, Ranking, Score, rank_towards
from tadvae.model.cell_file import column_and_value, read_cells
from tadvae.model.combinations import Combinations
from tadvae.model.device import chosen_device
from tadvae.model.ensemble import load_model
from tadvae.report.ranking_page import ranking_page


def rank_to(
    run: str,
    towards: str,
    out: str,
    asked: Combinations,
    *,
    page: str | None = None,
    cells: str | None = None,
    from_: str | None = None,
    context: str | None = None,
    dataset: str | None = None,
    controls: str | None = None,
    values: Literal["counts", "log1p"] = "counts",
    score: Score = "energy",
    top: int = 1_000,
    gpu: bool = False,
) -> Ranking:
    """Rank perturbations with a run or an ensemble; write a table, and a page where one is named.

    Parameters
    ----------
    towards
        A file of cells in the wanted state, or ``OBS=value``, cells of ``cells`` with a value in a column of
        ``obs``.
    cells
        The file in which ``OBS=value`` is looked up.
    from_
        ``OBS=value`` of the control cells in ``cells``; None: those of ``controls`` or of the context.
    controls
        A file of control cells.

    Raises
    ------
    UserError
        If the files do not hold such cells, and as :func:`tadvae.evaluation.ranking.rank_towards`.
    """
    places: list[tuple[Location, tuple[str, ...], str]] = [(Location.of(out), (".csv", ".parquet"), "--out")]
    places += [] if page is None else [(Location.of(page), (".html",), "--page")]
    for place, ends, option in places:
        if place.exists():
            raise UserError(f"{place}: already exists; name another file with {option}.")
        if not place.name.endswith(ends):
            raise UserError(f"{place}: expected a file name that ends in {' or '.join(ends)}.")
    if controls is not None and from_ is not None:
        raise UserError("--from and --controls both name the control cells; give one of them.")
    state = _state(towards, cells)
    start = None
    if from_ is not None:
        start = _chosen(from_, cells, "--from")
    elif controls is not None:
        start = read_cells(controls, MOST_CELLS)
    model = load_model(run, chosen_device(gpu))
    ranking = rank_towards(
        model,
        state,
        asked,
        context=context,
        dataset=dataset,
        controls=start,
        values=values,
        score=score,
        top=top,
    )
    table = ranking.table
    with Location.of(out).replacing() as partial, partial.filesystem.open_output_stream(partial.path) as file:
        if out.endswith(".csv"):
            file.write(table.to_csv(index=False).encode("utf-8"))
        else:
            table.to_parquet(file, index=False)
    if page is not None:
        name = towards if "=" in towards and not Location.of(towards).exists() else Path(towards).stem
        Location.of(page).write_text(ranking_page(ranking, name))
    return ranking


def _state(towards: str, cells: str | None) -> ad.AnnData:
    """The cells in the wanted state."""
    if Location.of(towards).exists():
        return read_cells(towards, MOST_CELLS)
    if "=" not in towards:
        raise UserError(
            f"--towards {towards}: no such file; give an .h5ad file, or OBS=value with the file as --cells."
        )
    return _chosen(towards, cells, "--towards")


def _chosen(words: str, cells: str | None, option: str) -> ad.AnnData:
    """Cells of a file by ``OBS=value``."""
    chosen = column_and_value(words, f"{option} {words}")
    if cells is None:
        raise UserError(f"{option} {words}: names cells of no file; give the file with --cells FILE.h5ad.")
    return read_cells(cells, MOST_CELLS, chosen)
