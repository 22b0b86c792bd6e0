"""``tadvae embed``: activities, latent means and contributions of the cells of files."""

from collections.abc import Sequence
from typing import Literal

import anndata as ad

from tadvae.base.errors import UserError
from tadvae.base.filesystem import Location
from tadvae.model.device import chosen_device
from tadvae.model.run_folder import RunFolder
from tadvae.model.tadvae import TADVAE


def embed_to(
    run: str,
    files: Sequence[str],
    out: str,
    *,
    contributions: Sequence[str] = (),
    layer: str | None = None,
    values: Literal["counts", "log1p"] = "counts",
    smooth: int | None = None,
    workers: int = 1,
    batch: str | None = None,
    controls: str | None = None,
    gpu: bool = False,
) -> ad.AnnData:
    """Embed the cells of files with a run and write one ``.h5ad`` atomically; see :meth:`TADVAE.embed`."""
    if Location.of(out).exists():
        raise UserError(f"{out}: already exists; name another file with --out.")
    folder = RunFolder(run)
    if folder.is_ensemble:
        first = next(iter(folder.members().values()))
        raise UserError(f"{run}: an ensemble, whose members have other factors each; embed with {first}.")
    if workers > 1 and gpu:
        raise UserError(f"--workers {workers}: several processes embed on CPUs only; leave out --gpu.")
    model = TADVAE.from_pretrained(run).to(chosen_device(gpu))
    return model.embed(
        files,
        out,
        contributions=contributions,
        layer=layer,
        values=values,
        smooth=smooth,
        workers=workers,
        batch=batch,
        controls=controls,
    )
