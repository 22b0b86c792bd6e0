"""Pathway files: GMT (``.gmt``, ``.gmt.gz``) and plain two-column tables.

GMT is the tab-separated format of the Broad Institute (MSigDB): one line per pathway, with its
identifier, a description, then its genes. Identifiers are kept exactly as the file gives them; matching them
to a gene vocabulary is done in :mod:`tadvae.pathways.membership`.

A malformed file is refused with one sentence that names file and line; no line is skipped.
"""

import gzip
import os
import uuid
from pathlib import Path

from tadvae.base.errors import UserError
from tadvae.pathways.sets import PathwaySets
from tadvae.pathways.textfile import read_text


def read_gmt(path: str | Path) -> PathwaySets:
    """Read a GMT file, plain or gzipped.

    Empty gene fields (trailing tabs of spreadsheet programs) and blank lines are ignored.

    Raises
    ------
    UserError
        If there is no such file, it is not UTF-8 text, it is empty, a line has fewer than three
        fields, or an identifier is repeated.
    """
    ids: dict[str, int] = {}  # identifier -> line, to name both lines of a repeat
    names, genes = [], []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        key, name, members = _gmt_fields(line)
        if not key or not members:
            found = len([part for part in line.split("\t") if part.strip()])
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
        If a pathway has no genes, a field holds a character GMT cannot carry, or the file cannot be
        written.
    """
    target = Path(path)
    lines = []
    for key, name, genes in zip(sets.ids, sets.names, sets.genes, strict=True):
        line = "\t".join([key, name, *genes])
        if (
            not key
            or not genes
            or any(mark in line for mark in "\n\r\0")
            or _gmt_fields(line) != (key, name, genes)
        ):
            raise UserError(
                f"{path}: expected pathways with genes and without tabs, line breaks or outer blanks, found "
                f"{key!r} with {len(genes)} genes; fix that pathway before writing."
            )
        lines.append(line + "\n")
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


def _gmt_fields(line: str) -> tuple[str, str, list[str]]:
    """Split one GMT line into id, description (the id where empty) and unique genes."""
    key, name, *genes = [part.strip().lstrip("\ufeff") for part in line.split("\t")] + [""] * 2
    return key, name or key, list(dict.fromkeys(gene for gene in genes if gene))
