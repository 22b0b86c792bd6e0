"""Activities, latent means and contributions of the cells of files, read and written some cells at a time."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import anndata as ad
import h5py
import numpy as np
import pandas as pd
from anndata.utils import make_index_unique

from tadvae.base.errors import UserError
from tadvae.base.filesystem import Location
from tadvae.cells.normalize import PreprocessConfig
from tadvae.data.vocabulary import Vocabulary
from tadvae.model.cell_file import CellFile, open_cells
from tadvae.model.device import to_numpy
from tadvae.model.encode import (
    CELLS_AT_ONCE,
    Smoothed,
    contributions,
    encode,
    principal_axes,
    project_onto,
    smoothed_activities,
    smoothed_contributions,
)
from tadvae.model.new_cells import (
    NewCells,
    Panel,
    log,
    match_panel,
    normalised,
    require_reads_cells,
    say_matched,
    unique_names,
    value_check,
)
from tadvae.nn.network import TADVAEModule
from tadvae.store.h5ad import written_locally
from tadvae.store.values import SAMPLE_ROWS

SAMPLE = 10_000
"""Cells of a file from which its principal axes are computed: all cells of a smaller file, of a larger one
blocks that are spread evenly over it."""


@dataclass(frozen=True)
class EmbedSettings:
    """What is computed.

    Attributes
    ----------
    contributions
        Ids of pathways whose genes' contributions are written.
    layer, values
        As for :meth:`tadvae.model.tadvae.TADVAE.activities`.
    axes
        Number of principal axes of each file onto which its cells are projected; 0: none.
    """

    contributions: Sequence[str] = ()
    layer: str | None = None
    values: Literal["counts", "log1p"] = "counts"
    axes: int = 0


@dataclass(frozen=True)
class _Opened:
    """An open file, its genes in the model's terms, and its axes."""

    file: CellFile
    panel: Panel
    axes: tuple[np.ndarray, np.ndarray] | None


def embed_files(
    module: TADVAEModule,
    vocabulary: Vocabulary,
    preprocess: PreprocessConfig,
    files: Sequence[str],
    out: str,
    settings: EmbedSettings,
    advance: Callable[[int], object] = lambda n: None,
) -> ad.AnnData:
    """Write what a network reads in the cells of some files to one ``.h5ad`` file, in bounded memory.

    Cells are read, computed and written in blocks, and the axes of smoothing come from a first pass over a
    sample of each file: the result of a cell does not depend on the cells of its block.

    Returns
    -------
    The written file without what was computed: ``obs``, ``var`` and ``uns``.

    Raises
    ------
    UserError
        As :meth:`tadvae.model.tadvae.TADVAE.embed`.
    """
    place = Location.of(out)
    if not place.name.endswith(".h5ad"):
        raise UserError(f"{place}: expected a file name that ends in .h5ad.")
    if not files:
        raise UserError("embed: no files; give one .h5ad file or several.")
    ids = vocabulary.membership.pathway_ids
    for pathway in settings.contributions:
        if pathway not in ids:
            raise UserError(f"pathway '{pathway}' is not in the model; see model.vocabulary.membership.")
    with ExitStack() as stack:
        opened = [_open(stack, path, vocabulary, preprocess, settings) for path in files]
        about = _about(opened, vocabulary, settings)
        trained = np.unique(np.concatenate([dataset.genes for dataset in vocabulary.datasets]))
        genes = {
            pathway: np.intersect1d(to_numpy(module.pathway.reads(ids.index(pathway))), trained)
            for pathway in settings.contributions
        }
        about["contributions"] = {
            _key(pathway): np.array(vocabulary.names(at), dtype=object) for pathway, at in genes.items()
        }
        known = vocabulary.genes.iloc[trained][["gene", "symbol", "ensembl_id"]].fillna("")
        var = known.set_axis(pd.Index(unique_names(vocabulary.names(trained))))
        matched = np.stack([np.isin(trained, each.panel.genes) for each in opened], axis=1)  # (G, files)
        result = ad.AnnData(obs=_obs(opened), var=var, varm={"matched": matched}, uns={"tadvae": about})
        with written_locally(place) as local:
            result.write_h5ad(local)
            with h5py.File(local, "r+") as file:
                row = 0
                for each in opened:
                    for block in _blocks(each, preprocess, settings):
                        values = _read(module, block, each.axes, ids, genes)
                        n = len(block.cells)
                        for key, value in values.items():
                            _array(file["obsm"], key, (len(result), value.shape[1]))[row : row + n] = value
                        row += n
                        advance(n)
    return result


def _open(
    stack: ExitStack, path: str, vocabulary: Vocabulary, preprocess: PreprocessConfig, settings: EmbedSettings
) -> _Opened:
    """Open a file, match its genes, check its values, and compute its axes."""
    file = stack.enter_context(open_cells(path, settings.layer))
    require_reads_cells(vocabulary, file.where)
    panel = match_panel(file.var, vocabulary, file.where)
    sample = file.spread(SAMPLE_ROWS, blocks=8)[:, panel.columns]
    names = pd.Index([f"a cell of the sample, number {i}" for i in range(sample.shape[0])])
    note = value_check(file.where, settings.values, lambda: sample).check_sample(
        names, file.var.index[panel.columns]
    )
    if note is not None:
        log.warning("%s", note)
    say_matched(panel, file.where)
    axes = None
    if settings.axes:
        cells = normalised(file.spread(SAMPLE)[:, panel.columns], panel, preprocess, settings.values)
        axes = principal_axes(NewCells.of(cells, panel), settings.axes)
    return _Opened(file, panel, axes)


def _blocks(opened: _Opened, preprocess: PreprocessConfig, settings: EmbedSettings) -> Iterator[NewCells]:
    """The cells of a file, checked, some at a time."""
    file, panel = opened.file, opened.panel
    check = value_check(file.where, settings.values, lambda: file.spread(SAMPLE_ROWS, 8)[:, panel.columns])
    for start in range(0, len(file), CELLS_AT_ONCE):
        stop = min(start + CELLS_AT_ONCE, len(file))
        matrix = file.rows(start, stop)[:, panel.columns]
        check.check(matrix, file.obs.index[start:stop], file.var.index[panel.columns])
        yield NewCells.of(normalised(matrix, panel, preprocess, settings.values), panel)


def _read(
    module: TADVAEModule,
    cells: NewCells,
    axes: tuple[np.ndarray, np.ndarray] | None,
    ids: Sequence[str],
    genes: dict[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """What is written of some cells, by key of ``obsm``."""
    activity, latent = encode(module, cells)
    smoothed: Smoothed | None = None
    if axes is not None:
        smoothed = project_onto(cells, *axes)
        activity = smoothed_activities(module, cells, smoothed)
    activity[:, ~cells.available] = np.nan
    found = {"X_tadvae_activity": activity, "X_tadvae": latent}
    for pathway, at in genes.items():
        p, measured = ids.index(pathway), np.intersect1d(at, cells.genes)
        if smoothed is None:
            parts = contributions(module, cells, p, measured)
        else:
            parts = smoothed_contributions(module, cells, smoothed, p, measured)
        every = np.full((len(cells.cells), len(at)), np.nan, np.float32)
        every[:, np.searchsorted(at, measured)] = parts
        found[_key(pathway)] = every
    return found


def _array(group: h5py.Group, key: str, shape: tuple[int, int]) -> h5py.Dataset:
    """An array of ``obsm``, made where it is not there."""
    if key not in group:
        rows = max(min(CELLS_AT_ONCE, shape[0]), 1)
        chunks = (rows, max(shape[1], 1)) if shape[1] else None
        made = group.create_dataset(key, shape, np.float32, chunks=chunks)
        made.attrs["encoding-type"], made.attrs["encoding-version"] = "array", "0.2.0"
    return group[key]


def _key(pathway: str) -> str:
    """The key of a pathway's contributions; HDF5 takes a slash for a folder."""
    return f"contributions_{pathway.replace('/', '_')}"


def _about(opened: Sequence[_Opened], vocabulary: Vocabulary, settings: EmbedSettings) -> dict[str, Any]:
    membership = vocabulary.membership
    return {
        "files": np.array([each.file.where for each in opened], dtype=object),
        "pathways": np.array(membership.pathway_ids, dtype=object),
        "pathway_names": np.array(membership.names, dtype=object),
        "available": np.stack([each.panel.available for each in opened]),  # (files, P)
        "genes_matched": np.array([len(each.panel.genes) for each in opened]),
        "genes_given": np.array([each.panel.n_given for each in opened]),
        "genes_of_model": opened[0].panel.n_trained,
        "smoothed_axes": settings.axes,
    }


def _obs(opened: Sequence[_Opened]) -> pd.DataFrame:
    """The columns that all files have, with the number of the file."""
    columns = [name for name in opened[0].file.obs if all(name in each.file.obs for each in opened)]
    parts = []
    for number, each in enumerate(opened):
        part = each.file.obs[columns].copy()
        part.columns = part.columns.astype(str)
        part["tadvae_file"] = number
        parts.append(part)
    obs = pd.concat(parts)
    for name in obs:
        if not pd.api.types.is_numeric_dtype(obs[name]):  # categories of files differ
            texts = obs[name].astype(object)
            obs[name] = texts.where(texts.notna(), "").astype(str).astype("category")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it may say that a name with the suffix is there too
        obs.index = make_index_unique(obs.index.astype(str))
    return obs
