"""Activities, latent means and contributions of the cells of files, read and written some cells at a time."""

import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
from anndata.utils import make_index_unique
from scipy import sparse

from tadvae.base.errors import UserError
from tadvae.base.filesystem import Location
from tadvae.cells.normalize import PreprocessConfig
from tadvae.data.vocabulary import Vocabulary
from tadvae.model.cell_file import open_cells
from tadvae.model.device import to_numpy
from tadvae.model.embed_batches import Batches, BatchMeans
from tadvae.model.embed_blocks import Block, BlockReader, EmbedSettings, OpenedFile, obsm_key
from tadvae.model.embed_workers import Work, by_workers
from tadvae.model.encode import CELLS_AT_ONCE, principal_axes
from tadvae.model.new_cells import (
    NewCells,
    log,
    match_panel,
    normalised,
    require_reads_cells,
    say_matched,
    sizes_for,
    unique_names,
    value_check,
)
from tadvae.nn.network import TADVAEModule
from tadvae.store.h5ad import written_locally
from tadvae.store.values import SAMPLE_ROWS

SAMPLE = 10_000
"""Cells of a file from which its principal axes are computed: all cells of a smaller file, of a larger one
blocks that are spread evenly over it."""


def embed_files(
    module: TADVAEModule,
    vocabulary: Vocabulary,
    preprocess: PreprocessConfig,
    files: Sequence[str],
    out: str,
    settings: EmbedSettings,
    advance: Callable[[int], object] = lambda n: None,
    workers: int = 1,
    batch: str | None = None,
    controls: str | None = None,
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
    if controls is not None and batch is None:
        raise UserError(f"controls '{controls}': name the column of batches with --batch too.")
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
            obsm_key(pathway): np.array(vocabulary.names(at), dtype=object) for pathway, at in genes.items()
        }
        known = vocabulary.genes.iloc[trained][["gene", "symbol", "ensembl_id"]].fillna("")
        var = known.set_axis(pd.Index(unique_names(vocabulary.names(trained))))
        matched = np.stack([np.isin(trained, each.panel.genes) for each in opened], axis=1)  # (G, files)
        obs = _obs(opened)
        means = None
        if batch is not None:
            means = BatchMeans(Batches.of(obs, batch, controls))
            about["batch"], about["controls"] = batch, controls or ""
        result = ad.AnnData(obs=obs, var=var, varm={"matched": matched}, uns={"tadvae": about})
        with written_locally(place) as local:
            result.write_h5ad(local)
            with h5py.File(local, "r+") as file:
                row, blocks = 0, _blocks(opened)
                if workers > 1:
                    panels, axes = [each.panel for each in opened], [each.axes for each in opened]
                    work = Work(module, ids, preprocess, settings, tuple(files), panels, axes, genes)
                    computed = by_workers(work, blocks, workers)
                else:
                    computed = map(BlockReader(module, preprocess, settings, opened, ids, genes), blocks)
                for block, values in zip(blocks, computed, strict=True):
                    n = block.stop - block.start
                    for key, value in values.items():
                        _array(file["obsm"], key, (len(result), value.shape[1]))[row : row + n] = value
                    if means is not None:
                        means.add(row, values)
                    row += n
                    advance(n)
                if means is not None:
                    means.correct(file["obsm"], CELLS_AT_ONCE)
    return result


def _open(
    stack: ExitStack, path: str, vocabulary: Vocabulary, preprocess: PreprocessConfig, settings: EmbedSettings
) -> OpenedFile:
    """Open a file, match its genes, check its values, and compute its axes."""
    file = stack.enter_context(open_cells(path, settings.layer))
    require_reads_cells(vocabulary, file.where)
    panel = match_panel(file.var, file.obs, vocabulary, file.where, settings.values)
    sample = file.spread(SAMPLE_ROWS, blocks=8)[:, panel.columns]
    check, genes = value_check(file.where, settings.values, lambda: sample), file.var.index[panel.columns]
    note = check.check_sample(_sampled(sample), genes)
    if note is not None:
        log.warning("%s", note)
    say_matched(panel, file.where)
    axes = None
    if settings.axes:
        rows = file.spread_rows(SAMPLE)
        larger = file.chosen(rows)[:, panel.columns]
        check.check(larger, _sampled(larger), genes)
        library = sizes_for(file.obs.iloc[rows], panel, file.where)
        cells = normalised(larger, panel, preprocess, settings.values, library)
        axes = principal_axes(NewCells.of(cells, panel), settings.axes)
    return OpenedFile(file, panel, axes)


def _sampled(matrix: sparse.csr_matrix) -> pd.Index:
    """What cells of a sample are called in messages."""
    return pd.Index([f"a cell of the sample, number {i}" for i in range(matrix.shape[0])])


def _blocks(opened: Sequence[OpenedFile]) -> list[Block]:
    """All rows of the files in their order, some at a time."""
    return [
        Block(number, start, min(start + CELLS_AT_ONCE, len(each.file)))
        for number, each in enumerate(opened)
        for start in range(0, len(each.file), CELLS_AT_ONCE)
    ]


def _array(group: h5py.Group, key: str, shape: tuple[int, int]) -> h5py.Dataset:
    """An array of ``obsm``, made where it is not there."""
    if key not in group:
        rows = max(min(CELLS_AT_ONCE, shape[0]), 1)
        chunks = (rows, max(shape[1], 1)) if shape[1] else None
        made = group.create_dataset(key, shape, np.float32, chunks=chunks)
        made.attrs["encoding-type"], made.attrs["encoding-version"] = "array", "0.2.0"
    return group[key]


def _about(opened: Sequence[OpenedFile], vocabulary: Vocabulary, settings: EmbedSettings) -> dict[str, Any]:
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


def _obs(opened: Sequence[OpenedFile]) -> pd.DataFrame:
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
