"""Provenance of a pathway file: sources with checksums, settings, and the effect of every filter.

It holds neither times nor paths, so the same sources and settings give the same bytes.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tadvae.base.filesystem import Location
from tadvae.base.version import __version__
from tadvae.pathway_selection.selection import FilterReport, SelectionConfig

GO_LICENCE = (
    "Gene Ontology data: Gene Ontology Consortium, CC BY 4.0 (creativecommons.org/licenses/by/4.0), changed: "
    "terms selected, annotations grouped along the ontology; doi:10.1038/75556, doi:10.1093/genetics/iyad031"
)


def source(path: str | Path, release: str = "") -> dict[str, str]:
    """Name, release and checksum of a file."""
    with Path(path).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"file": Path(path).name, "release": release, "sha256": digest}


def provenance(
    sources: Sequence[Mapping[str, str]],
    config: SelectionConfig,
    reports: Sequence[FilterReport],
    settings: Mapping[str, Any] | None = None,
    licence: str = "",
) -> dict[str, Any]:
    """Collect the provenance as plain values, for JSON.

    Parameters
    ----------
    settings
        Further settings that determine the result, such as evidence codes.
    licence
        Terms of use of the sources; empty if they are not known.
    """
    return {
        "made_by": f"tadvae {__version__}",
        "sources": [dict(each) for each in sources],
        "selection": config.model_dump(mode="json"),
        "settings": dict(settings or {}),
        "filters": [
            {"filter": report.filter, "removed": report.removed, "left": report.left} for report in reports
        ],
        "licence": licence,
    }


def write_beside(about: Mapping[str, Any], path: str | Path) -> Path:
    """Write the provenance into a JSON file next to a GMT file, whose format cannot hold it."""
    place = Path(path).with_name(f"{Path(path).name}.provenance.json")
    Location.of(place).write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n")
    return place
