"""Fetch a release of the Gene Ontology: the ontology and the human annotations that belong to it."""

import re
from pathlib import Path

from tadvae.base.download import download
from tadvae.base.errors import UserError

CURRENT = "https://current.geneontology.org"
"""Where GO keeps its latest release."""
ARCHIVE = "https://release.geneontology.org"
"""Where GO keeps all, by date."""
OBO = "ontology/go-basic.obo"
GAF = "annotations/goa_human.gaf.gz"
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")


def release_url(release: str) -> str:
    """Where a release (``latest``, or its date) is.

    Raises
    ------
    UserError
        If it is neither.
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
    """Download ontology and annotations; a file that is there already is kept, except for ``latest``.

    Parameters
    ----------
    folder
        Where the files go, in a folder of the release.
    url
        Another base address (a mirror); None: GO's own.
    gaf
        Path of the annotations below the base address, for another organism.
    timeout
        Seconds to wait for an answer of the server.

    Returns
    -------
    The paths of the OBO and the GAF file.

    Raises
    ------
    UserError
        If a file cannot be fetched.
    """
    base = (url or release_url(release)).rstrip("/")
    target = Path(folder).expanduser() / release
    return (
        _fetch(f"{base}/{OBO}", target, release == "latest", timeout),
        _fetch(f"{base}/{gaf}", target, release == "latest", timeout),
    )


def _fetch(url: str, folder: Path, again: bool, timeout: float) -> Path:
    place = folder / url.rsplit("/", 1)[-1]
    if again or not place.exists():  # no checksum is known beforehand; the provenance keeps it
        mend = "fetch both files yourself and name them with `tadvae pathways select --obo FILE --gaf FILE`"
        download(url, place, timeout, mend)
    return place
