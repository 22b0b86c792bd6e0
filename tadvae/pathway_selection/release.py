"""Download a release of the Gene Ontology: the ontology and its human annotations."""

import re
from pathlib import Path

from tadvae.base.download import download
from tadvae.base.errors import UserError

CURRENT = "https://current.geneontology.org"
"""Address of the latest GO release."""
ARCHIVE = "https://release.geneontology.org"
"""Address of all GO releases, by date."""
OBO = "ontology/go-basic.obo"
GAF = "annotations/goa_human.gaf.gz"
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")


def release_url(release: str) -> str:
    """Address of a release: ``latest`` or a date.

    Raises
    ------
    UserError
        If the release is neither.
    """
    if release == "latest":
        return CURRENT
    if not _DATE.fullmatch(release):
        raise UserError(
            f"release '{release}': expected latest or a date such as 2022-07-01, found neither; see "
            f"{ARCHIVE} for the dates."
        )
    return f"{ARCHIVE}/{release}"


def fetch_release(
    folder: str | Path,
    release: str = "latest",
    *,
    url: str | None = None,
    gaf: str = GAF,
    timeout: float = 60.0,
) -> tuple[Path, Path]:
    """Download ontology and annotations; existing files are kept, except for ``latest``.

    Parameters
    ----------
    folder
        Folder that gets a subfolder for the release.
    url
        Base address of a mirror; None: that of GO.
    gaf
        Path of the annotations below the base address, for another organism.
    timeout
        Seconds to wait for the server to answer.

    Returns
    -------
    The paths of the OBO and the GAF file.

    Raises
    ------
    UserError
        If a file cannot be downloaded.
    """
    base = (url or release_url(release)).rstrip("/")
    target = Path(folder).expanduser() / release
    return (
        _fetch(f"{base}/{OBO}", target, release == "latest", timeout),
        _fetch(f"{base}/{gaf}", target, release == "latest", timeout),
    )


def _fetch(url: str, folder: Path, again: bool, timeout: float) -> Path:
    place = folder / url.rsplit("/", 1)[-1]
    if again or not place.exists():  # no checksum is known in advance; the provenance records it
        fix = "fetch both files yourself and name them with `tadvae pathways select --obo FILE --gaf FILE`"
        download(url, place, timeout, fix)
    return place
