"""Pathway files: GMT (``.gmt``, ``.gmt.gz``) and plain two-column tables.

GMT is the tab-separated format of the Broad Institute (MSigDB): one line per pathway, with its
identifier, a description, then its genes. In some files there are no descriptions, and the genes follow the
identifier; this is recognised by the genes, and said. Identifiers are kept exactly as the file gives them;
matching them to a gene vocabulary is done in :mod:`tadvae.pathways.membership`.

A malformed file is refused with one sentence that names file and line; no line is skipped.
"""

import gzip
import logging
import os
import re
import uuid
from pathlib import Path

from tadvae.base.errors import UserError
from tadvae.genes.harmonise import canonical_targets
from tadvae.genes.reference import GeneReference
from tadvae.pathways.sets import PathwaySets
from tadvae.pathways.textfile import read_text

log = logging.getLogger("tadvae")

_LIKE_A_GENE = re.compile(r"[A-Za-z0-9][\w.@-]{0,24}")
_SHARE_OF_GENES = 0.8
"""Share of lines whose second field is a gene, from which on a file has no descriptions."""


def read_gmt(path: str | Path) -> PathwaySets:
    """Read a GMT file, plain or gzipped.

    Empty gene fields (trailing tabs of spreadsheet programs) and blank lines are ignored.

    Raises
    ------
    UserError
        If there is no such file, it is not UTF-8 text, it is empty, a line has too few fields, or an
        identifier is repeated.
    """
    rows = [
        (number, _fields(line))
        for number, line in enumerate(read_text(path).split("\n"), start=1)
        if line.strip()
    ]
    described = not _lacks_descriptions([fields for _, fields in rows])
    if not described:
        log.warning("%s: read as GMT without descriptions: the genes follow the pathway id.", path)
    ids: dict[str, int] = {}  # identifier -> line, to name both lines of a repeat
    names, genes = [], []
    for number, fields in rows:
        key, name, members = _parts(fields, described)
        if not key or not members:
            found = len([part for part in fields if part])
            raise UserError(
                f"{path}, line {number}: expected at least three tab-separated fields (pathway id, "
                f"description, one or more genes), found {found}; add the genes or delete the line."
            )
        if key in ids:
            raise UserError(
                f"{path}, line {number}: expected unique pathway ids, found '{key}' again (first on line "
                f"{ids[key]}); rename or delete one of the two."
            )
        ids[key] = number
        names.append(name)
        genes.append(members)
    if not ids:
        raise UserError(f"{path}: expected one pathway per line, found an empty file; give a GMT file.")
    return PathwaySets(list(ids), names, genes, source=str(path))


def write_gmt(sets: PathwaySets, path: str | Path) -> None:
    """Write ``sets`` as GMT, gzipped if the suffix is ``.gz``; :func:`read_gmt` gives them back.

    The file is written atomically, and its bytes depend only on ``sets``.

    Raises
    ------
    UserError
        If a pathway has no genes, a field holds a character GMT cannot carry, the names of the pathways
        would be read as genes, or the file cannot be written.
    """
    target = Path(path)
    lines = []
    for key, name, genes in zip(sets.ids, sets.names, sets.genes, strict=True):
        line = "\t".join([key, name, *genes])
        if (
            not key
            or not genes
            or any(mark in line for mark in "\n\r\0")
            or _parts(_fields(line)) != (key, name, genes)
        ):
            raise UserError(
                f"{path}: expected pathways with genes and without tabs, line breaks or outer blanks, found "
                f"{key!r} with {len(genes)} genes; fix that pathway before writing."
            )
        lines.append(line + "\n")
    if _lacks_descriptions([_fields(line) for line in lines]):
        raise UserError(
            f"{path}: expected names of pathways, found names of genes (such as "
            f"'{sets.names[0]}' of '{sets.ids[0]}'), which would be read back as "
            "genes; rename the pathways before writing."
        )
    data = "".join(lines).encode("utf-8")
    if target.suffix == ".gz":
        data = gzip.compress(data, mtime=0)
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        partial.write_bytes(data)
        os.replace(partial, target)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); give a writable path with free space."
        ) from None


def _fields(line: str) -> list[str]:
    """Fields of one line, without outer blanks."""
    return [part.strip().lstrip("\ufeff") for part in line.split("\t")]


def _parts(fields: list[str], described: bool = True) -> tuple[str, str, list[str]]:
    """Split the fields of one line into id, description (the id where empty) and unique genes."""
    key, name, *genes = fields + [""] * 2
    if not described:
        name, genes = "", [name, *genes]
    return key, name or key, list(dict.fromkeys(gene for gene in genes if gene))


def _lacks_descriptions(rows: list[list[str]]) -> bool:
    """Whether the second fields of nearly all lines are genes: of other lines, or of the human reference.

    The same text everywhere (``na``) is a description, and so is a part of the id (``STAT1`` of
    ``STAT1_targets``).
    """
    second = [fields[1] if len(fields) > 1 else "" for fields in rows]
    most = _SHARE_OF_GENES * len(rows)
    if not rows or (len(rows) > 1 and len(set(second)) == 1):
        return False
    likely = [
        text
        for text, fields in zip(second, rows, strict=True)
        if _LIKE_A_GENE.fullmatch(text) and text.upper() not in re.split(r"[^A-Z0-9]", fields[0].upper())
    ]
    if len(likely) < most:
        return False
    members = {text for fields in rows for text in fields[2:]}
    others = [text for text in likely if text not in members]
    if len(likely) - len(others) < most:
        found = canonical_targets(others, GeneReference.load("human"))
        others = [text for text, gene in zip(others, found, strict=True) if gene is None]
    return len(likely) - len(others) >= most
