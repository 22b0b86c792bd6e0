"""What a trained model reads in cells: the methods of ``TADVAE`` that give activities and embeddings."""

from collections.abc import Callable, Sequence
from typing import Literal

import anndata as ad
import numpy as np
import pandas as pd

from tadvae.base.errors import UserError
from tadvae.data.vocabulary import Vocabulary
from tadvae.model.device import to_numpy
from tadvae.model.embed import embed_files
from tadvae.model.embed_blocks import EmbedSettings
from tadvae.model.encode import (
    AXES,
    contributions,
    encode,
    project,
    smoothed_activities,
    smoothed_contributions,
)
from tadvae.model.new_cells import cells_of, keep_results
from tadvae.nn.network import TADVAEModule
from tadvae.settings.experiment import ExperimentConfig


class ReadsCells:
    """What gives :meth:`activities`, :meth:`latent`, :meth:`contributions` and :meth:`embed` to a model."""

    module: TADVAEModule
    vocabulary: Vocabulary
    config: ExperimentConfig

    def activities(
        self,
        adata: ad.AnnData,
        *,
        layer: str | None = None,
        values: Literal["counts", "log1p"] = "counts",
        smooth: int | None = None,
    ) -> pd.DataFrame:
        """Activity of every pathway in every cell.

        Parameters
        ----------
        adata
            Cells with any panel, in memory or backed; genes are matched by identifier. Columns that are not
            genes (antibodies, guides) are left out, also of library sizes. Cells of a training panel whose
            spec named a column of library sizes (``total_counts``) are normalised by that column of ``obs``.
        layer
            Layer with the values; None: ``X``.
        values
            Raw counts, or log1p values normalised as in training.
        smooth
            Number of principal axes of these cells onto which they are projected before (see
            :class:`tadvae.model.encode.Smoothed`). Activities of single cells are less noisy then, but
            depend on the other cells given, and differences that few cells show may be lost.

            - None: 20 if the pathway layer is linear in expression (masking ``members`` and ``linear``
              without encoder), else none; the usual choice.
            - 0: none; use it to compare means of groups, or if cells are given in parts.

        Returns
        -------
        Activities, shape (n_cells, P), by pathway id; NaN where the panel has fewer measured genes of a
        pathway than the model asks for. Also put into ``adata.obsm["X_tadvae_activity"]``, with the
        pathways' names and availability in ``adata.uns["tadvae"]``. How many genes matched is said by the
        logger ``tadvae`` and in ``adata.uns["tadvae"]``.

        Raises
        ------
        UserError
            If the panel sees no pathway, the values are not what they are said to be, or cells are to be
            smoothed for a pathway layer that is not linear.
        """
        axes = self._axes(smooth)
        cells = cells_of(adata, self.vocabulary, self.config.preprocess, layer=layer, values=values)
        if axes:
            activity = smoothed_activities(self.module, cells, project(cells, axes))
        else:
            activity, _ = encode(self.module, cells)
        activity[:, ~cells.available] = np.nan
        membership = self.vocabulary.membership
        about = {
            "pathways": membership.pathway_ids,
            "pathway_names": membership.names,
            "available": cells.available,
            "genes_matched": len(cells.genes),
            "genes_given": adata.n_vars,
            "genes_of_model": cells.n_trained,
            "smoothed_axes": axes,
        }
        keep_results(adata, "X_tadvae_activity", activity, about)
        return pd.DataFrame(activity, index=adata.obs_names, columns=membership.pathway_ids)

    def latent(
        self, adata: ad.AnnData, *, layer: str | None = None, values: Literal["counts", "log1p"] = "counts"
    ) -> np.ndarray:
        """Latent means μ before any perturbation's shift; see :meth:`activities` for the parameters.

        Returns
        -------
        Shape (n_cells, K), without NaN; also put into ``adata.obsm["X_tadvae"]``, so that
        ``sc.pp.neighbors(adata, use_rep="X_tadvae")`` finds it.

        Raises
        ------
        UserError
            As :meth:`activities`.
        """
        cells = cells_of(adata, self.vocabulary, self.config.preprocess, layer=layer, values=values)
        _, latent = encode(self.module, cells)
        keep_results(adata, "X_tadvae", latent)
        return latent

    def contributions(
        self,
        adata: ad.AnnData,
        pathway: str,
        *,
        layer: str | None = None,
        values: Literal["counts", "log1p"] = "counts",
        smooth: int | None = None,
    ) -> pd.DataFrame:
        """What each gene adds to one pathway's activity, shape (n_cells, genes that can).

        Genes are the measured members of the pathway, and others where the model lets them contribute
        (candidates of a soft mask, a leak). They are named as in ``adata.var_names``.
        Rows sum to the activity of the same cells, with the same ``smooth``, less the pathway's bias.

        Raises
        ------
        UserError
            If the pathway (by id) is not in the model, and as :meth:`activities`.
        """
        membership = self.vocabulary.membership
        if pathway not in membership.pathway_ids:
            raise UserError(f"pathway '{pathway}' is not in the model; see model.vocabulary.membership.")
        p, axes = membership.pathway_ids.index(pathway), self._axes(smooth)
        cells = cells_of(adata, self.vocabulary, self.config.preprocess, layer=layer, values=values)
        genes = np.intersect1d(to_numpy(self.module.pathway.reads(p)), cells.genes)
        if axes:
            result = smoothed_contributions(self.module, cells, project(cells, axes), p, genes)
        else:
            result = contributions(self.module, cells, p, genes)
        names = np.array(cells.names, dtype=object)[np.searchsorted(cells.genes, genes)]
        return pd.DataFrame(result, index=adata.obs_names, columns=names)

    def embed(
        self,
        files: str | Sequence[str],
        out: str,
        *,
        contributions: Sequence[str] = (),
        layer: str | None = None,
        values: Literal["counts", "log1p"] = "counts",
        smooth: int | None = None,
        advance: Callable[[int], object] = lambda n: None,
        workers: int = 1,
        batch: str | None = None,
        controls: str | None = None,
    ) -> ad.AnnData:
        """Activities, latent means and contributions of the cells of files, written in bounded memory.

        Parameters
        ----------
        files
            One ``.h5ad`` file or ``.zarr`` folder, or several, of any panels.
        out
            The ``.h5ad`` file to write; it has the cells of all files, in their order.
        contributions
            Ids of pathways for which the contribution of every gene is written too.
        layer, values, smooth
            As for :meth:`activities`. Principal axes are those of each file: of all its cells, or of 10,000
            cells spread evenly over a larger file.
        advance
            Called with the number of cells that are written.
        workers
            Number of processes.

            - 1: this process, with the threads of torch; use it for small files and on a GPU.
            - more: new processes with one thread and a copy of the network each; use them for large files.
              The result is that of one process with one thread, bit for bit. A script calls this below
              ``if __name__ == "__main__":``.
        batch
            Column of ``obs`` with the batch of each cell (a plate, a donor, ``tadvae_file`` for the file);
            activities and latent means of every batch are then moved by a constant, so that its control cells
            have the mean of all control cells. None: nothing is moved. Use it where batches differ though
            their controls should not (``docs/batches.md``).
        controls
            ``OBS=value`` of the control cells; None: all cells, for batches of the same composition.

        Returns
        -------
        The written file without ``obsm``. In the file, ``obsm["X_tadvae_activity"]`` is NaN for pathways that
        the panel of the cell's file does not see, ``obsm["X_tadvae"]`` has the latent means,
        ``obsm["contributions_PATHWAY"]`` the contributions of the genes that
        ``uns["tadvae"]["contributions"]`` names; ``varm["matched"]`` says which genes each file has. ``obs``
        has the columns that all files have, and ``tadvae_file``, the number of the file.

        Raises
        ------
        UserError
            As :meth:`activities`; if there is no such pathway, a file cannot be read, a cell has no batch, or
            a batch no control cells.
        """
        settings = EmbedSettings(tuple(contributions), layer, values, self._axes(smooth))
        given = [files] if isinstance(files, str) else list(files)
        if workers > 1 and next(self.module.parameters()).device.type != "cpu":
            raise UserError(f"workers={workers}: several processes embed on CPUs only; use one on a GPU.")
        return embed_files(
            self.module, self.vocabulary, self.config.preprocess, given, out, settings, advance, workers,
            batch, controls,
        )  # fmt: skip

    def _axes(self, smooth: int | None) -> int:
        """How many axes cells are projected onto; 0 for none."""
        linear = self.module.pathway.is_linear
        if smooth is None:
            return AXES if linear else 0
        if smooth < 0 or (smooth and not linear):
            masking = self.config.model.pathway.masking
            raise UserError(
                f"smooth={smooth}: expected a number of axes from 0, and 0 alone for pathway layers that "
                f"are not linear in expression; masking '{masking}' of this model is "
                f"{'' if linear else 'not '}linear."
            )
        return smooth
