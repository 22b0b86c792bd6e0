"""Annotations of genes with terms: GAF files, and the gene sets built from them.

Format: GAF 2.2 (geneontology.org, "GO Annotation File"), whose columns 3, 4, 5, 7 and 9 are gene symbol,
qualifier, term, evidence code and aspect.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy import sparse

from tadvae.base.errors import UserError
from tadvae.pathway_selection.ontology import GROUPING, NAMESPACES, Aspect, Ontology
from tadvae.pathways.sets import PathwaySets
from tadvae.pathways.textfile import read_text

EXPERIMENTAL = frozenset({"EXP", "IDA", "IPI", "IMP", "IGI", "IEP", "HTP", "HDA", "HMP", "HGI", "HEP"})
"""Evidence codes of experiments, high-throughput ones included."""
CURATED = EXPERIMENTAL | {
    *("IBA", "IBD", "IKR", "IRD", "ISS", "ISO", "ISA", "ISM", "IGC", "RCA", "TAS", "NAS", "IC")
}
"""Codes of annotations that a curator has reviewed: all except IEA (inferred by a program)."""
ALL = CURATED | {"IEA"}
"""Every code except ND (no data)."""
EVIDENCE = {"all": ALL, "curated": CURATED, "experimental": EXPERIMENTAL}

_COLUMNS = (15, 17)  # GAF 1.0 has 15; 2.0 and later have 17, of which the last two are optional
_TERM = re.compile(r"[A-Za-z_]+:\w+")


@dataclass(frozen=True)
class Annotations:
    """Direct annotations, one row each.

    Attributes
    ----------
    genes, terms
        Gene symbol and term of each row.
    source, release
        File and release of the annotations.
    lines
        Line of each row in the file; may be empty.
    left_out
        Number of rows that were left out, by reason.
    """

    genes: list[str]
    terms: list[str]
    source: str = "the annotations"
    release: str = ""
    lines: list[int] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.genes)


def parse_evidence(text: str) -> frozenset[str]:
    """Evidence codes of ``all``, ``curated``, ``experimental``, or a list such as ``IDA,IMP``.

    Raises
    ------
    UserError
        If a code is not one of GO's.
    """
    if text in EVIDENCE:
        return EVIDENCE[text]
    codes = frozenset(code.strip().upper() for code in text.split(",") if code.strip())
    unknown = sorted(codes - ALL - {"ND"})
    if unknown or not codes:
        raise UserError(
            f"evidence '{text}': expected all, curated, experimental or GO's codes separated by commas, "
            f"found {', '.join(unknown) or 'nothing'}; give for example IDA,IMP."
        )
    return codes


def read_gaf(path: str | Path, aspect: Aspect = "P", evidence: Collection[str] = ALL) -> Annotations:
    """Read the annotations of one aspect from a GAF file, plain or gzipped.

    A row with the qualifier NOT says that a gene does *not* belong to a term; such rows, and rows with other
    evidence codes, are left out.

    Raises
    ------
    UserError
        If the file is missing, a row is malformed or has an unknown code, or no row is left.
    """
    left_out: Counter[str] = Counter()
    genes, terms, lines = [], [], []
    release, rows = "", 0
    for number, line in enumerate(
        read_text(path, "GAF file", "a GAF file such as goa_human.gaf").split("\n"), start=1
    ):
        if line.startswith("!"):
            key, _, value = line[1:].partition(":")
            if key.strip() in ("date-generated", "generated", "date"):
                release = release or value.strip()
            continue
        if not line.strip():
            continue
        fields = line.split("\t")
        if not _COLUMNS[0] <= len(fields) <= _COLUMNS[1]:
            raise UserError(
                f"{path}, line {number}: expected {_COLUMNS[0]} to {_COLUMNS[1]} tab-separated columns of "
                f"GAF, found {len(fields)}; fetch the whole file again or fix the line."
            )
        symbol, qualifiers, term, code, found = (fields[i].strip() for i in (2, 3, 4, 6, 8))
        if not symbol or not _TERM.fullmatch(term) or found not in NAMESPACES:
            raise UserError(
                f"{path}, line {number}: expected a symbol, a term and an aspect (P, F or C) in columns 3, 5 "
                f"and 9, found '{symbol}', '{term}' and '{found}'; give a GAF file or fix the line."
            )
        if code not in ALL and code != "ND":
            raise UserError(
                f"{path}, line {number}: expected a GO evidence code in column 7, found '{code}'; give a GAF "
                "file or fix the line."
            )
        rows += 1
        if found != aspect:
            continue
        if "NOT" in qualifiers.upper().split("|"):
            left_out["NOT"] += 1
        elif code not in evidence:
            left_out["evidence"] += 1
        else:
            genes.append(symbol)
            terms.append(term)
            lines.append(number)
    if not genes:
        raise UserError(
            f"{path}: expected annotations with terms of the {NAMESPACES[aspect]}, found none among {rows} "
            f"rows ({left_out['NOT']} with NOT, {left_out['evidence']} of other evidence); give a GAF file "
            "such as goa_human.gaf, or accept more evidence codes."
        )
    return Annotations(genes, terms, str(path), release, lines, dict(left_out))


def gene_sets(
    ontology: Ontology, annotations: Annotations, relations: Iterable[str] = GROUPING
) -> PathwaySets:
    """Gene set of every term: genes annotated with the term or with a descendant of it.

    Terms are sorted by id, genes by name. Rows with an obsolete term are left out.

    Raises
    ------
    UserError
        If an annotation has a term that the ontology does not have, or the ontology has a cycle.
    """
    rows, columns = [], []
    genes = sorted(set(annotations.genes))
    position = {gene: i for i, gene in enumerate(genes)}
    for i, (gene, term) in enumerate(zip(annotations.genes, annotations.terms, strict=True)):
        at = ontology.index.get(ontology.alternates.get(term, term))
        if at is not None:
            rows.append(at)
            columns.append(position[gene])
        elif term not in ontology.obsolete:
            line = f", line {annotations.lines[i]}" if annotations.lines else ""
            raise UserError(
                f"{annotations.source}{line}: expected a term of {ontology.source}, found {term} of {gene}; "
                "give the ontology and the annotations of one release."
            )
    direct = sparse.csr_matrix(
        (np.ones(len(rows), bool), (rows, columns)), shape=(len(ontology), len(genes))
    )  # (T, G)
    members = (direct + ontology.closure(relations).T.tocsr() @ direct).astype(bool).tocsr()
    members.sort_indices()
    kept = np.flatnonzero(np.diff(members.indptr))
    names = np.array(genes, dtype=object)
    return PathwaySets(
        ids=[ontology.ids[t] for t in kept],
        names=[ontology.names[ontology.ids[t]] for t in kept],
        genes=[names[members.indices[members.indptr[t] : members.indptr[t + 1]]].tolist() for t in kept],
        source=annotations.source,
    )
