"""Blocks of cells of open files: read, checked, and turned into what ``embed`` writes of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tadvae.cells.normalize import PreprocessConfig
from tadvae.model.cell_file import CellFile
from tadvae.model.encode import (
    Smoothed,
    contributions,
    encode,
    project_onto,
    smoothed_activities,
    smoothed_contributions,
)
from tadvae.model.new_cells import NewCells, Panel, normalised, sizes_for, value_check
from tadvae.nn.network import TADVAEModule
from tadvae.store.values import SAMPLE_ROWS, ValueCheck


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
class OpenedFile:
    """An open file, its genes in the model's terms, and its axes."""

    file: CellFile
    panel: Panel
    axes: tuple[np.ndarray, np.ndarray] | None


@dataclass(frozen=True)
class Block:
    """Rows ``start`` to ``stop`` of one of the files."""

    file: int
    start: int
    stop: int


class BlockReader:
    """Reads blocks of open files, and computes what is written of their cells.

    Parameters
    ----------
    genes
        Vocabulary indices of the genes of each pathway whose contributions are asked for.
    """

    def __init__(
        self,
        module: TADVAEModule,
        preprocess: PreprocessConfig,
        settings: EmbedSettings,
        opened: Sequence[OpenedFile],
        ids: Sequence[str],
        genes: dict[str, np.ndarray],
    ) -> None:
        self._module, self._preprocess, self._settings = module, preprocess, settings
        self._opened, self._ids, self._genes = opened, ids, genes
        self._checks = [_check(each, settings) for each in opened]

    def __call__(self, block: Block) -> dict[str, np.ndarray]:
        """What is written of a block, by key of ``obsm``; its values are checked."""
        opened = self._opened[block.file]
        file, panel = opened.file, opened.panel
        matrix = file.rows(block.start, block.stop)[:, panel.columns]
        names = file.obs.index[block.start : block.stop]
        self._checks[block.file].check(matrix, names, file.var.index[panel.columns])
        library = sizes_for(file.obs.iloc[block.start : block.stop], panel, file.where)
        cells = normalised(matrix, panel, self._preprocess, self._settings.values, library)
        return _read(self._module, NewCells.of(cells, panel), opened.axes, self._ids, self._genes)


def _check(opened: OpenedFile, settings: EmbedSettings) -> ValueCheck:
    """What checks the values of a file."""
    file, columns = opened.file, opened.panel.columns
    return value_check(file.where, settings.values, lambda: file.spread(SAMPLE_ROWS, 8)[:, columns])


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
        found[obsm_key(pathway)] = every
    return found


def obsm_key(pathway: str) -> str:
    """The key of a pathway's contributions; HDF5 takes a slash for a folder."""
    return f"contributions_{pathway.replace('/', '_')}"
