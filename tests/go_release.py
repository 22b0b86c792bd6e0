"""A tiny release of the Gene Ontology, in the folders and formats of the real ones."""

import gzip
from pathlib import Path

GENES = ["TP53", "MDM2", "CDKN1A", "BAX", "MYC", "JUN", "FOS", "EGR1", "STAT1", "IRF1", "IRF7", "MX1"]
TERMS = {"GO:1": "all", "GO:2": "damage", "GO:3": "growth", "GO:4": "interferon", "GO:5": "its response"}
DIRECT = {"GO:2": GENES[:4], "GO:3": GENES[4:8], "GO:4": GENES[8:10], "GO:5": GENES[10:]}
ROW = "U\tP\t{gene}\tinvolved_in\t{term}\tR\tIDA\t\tP\t\t\tprotein\tt\td\tG\t\t\n"


def write_release(folder: Path, release: str = "2024-01-17", direct: dict | None = None) -> tuple[Path, Path]:
    """Write ontology and annotations; GO:5 is part of GO:4, and everything is below GO:1."""
    stanzas = [f"format-version: 1.2\ndata-version: releases/{release}\nontology: go\n"]
    for term, name in TERMS.items():
        up = {"GO:1": "", "GO:5": "relationship: part_of GO:4\n"}.get(term, "is_a: GO:1\n")
        stanzas.append(f"[Term]\nid: {term}\nname: {name}\nnamespace: biological_process\n{up}")
    obo, gaf = folder / "ontology" / "go-basic.obo", folder / "annotations" / "goa_human.gaf.gz"
    for path in (obo, gaf):
        path.parent.mkdir(parents=True, exist_ok=True)
    obo.write_text("\n".join(stanzas))
    rows = [ROW.format(gene=gene, term=term) for term, genes in (direct or DIRECT).items() for gene in genes]
    text = f"!gaf-version: 2.2\n!date-generated: {release}\n" + "".join(rows)
    gaf.write_bytes(gzip.compress(text.encode(), mtime=0))
    return obo, gaf
