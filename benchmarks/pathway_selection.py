"""Selecting pathways from the full closure of GO takes seconds.

Human GO biological process of 2022-07-01: 1.46 million (term, gene) pairs. Every step is timed in this run:
reading (also as OBO and GAF, written here from the tables), closing over the graph, every preset. The last
line compares the sparse, component-wise clustering with the direct method (all distances, one linkage) on
the same sets.

    python benchmarks/pathway_selection.py [--json FILE]

The data folder is the environment variable TADVAE_DATA, or ../shared/data next to the repository.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import pdist

from tadvae.pathway_selection.annotations import gene_sets, read_gaf
from tadvae.pathway_selection.ontology import read_obo, relations
from tadvae.pathway_selection.redundancy import clusters
from tadvae.pathway_selection.selection import PRESETS, SelectionConfig, member_matrix, select
from tadvae.pathways.measured import Measured
from tadvae.pathways.read import read_pathways
from tadvae.pathways.sets import PathwaySets

PLAIN = 2000
"""Number of sets for the direct method, whose memory grows with its square."""


def data_folder() -> Path:
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    return Path(os.environ.get("TADVAE_DATA", default)) / "pathways"


def write_release(data: Path, folder: Path) -> tuple[Path, Path]:
    """The tables as GO's own file formats."""
    edges = pd.read_csv(data / "go_bp_dag_parents_2022-07-01.tsv.gz", sep="\t")
    edges = edges[edges["parent"] != "all"]
    up: dict[str, list[str]] = {}
    for child, parent, relation in edges.itertuples(index=False):
        line = (
            f"is_a: {parent}" if relation == "isa" else f"relationship: {relation.replace(' ', '_')} {parent}"
        )
        up.setdefault(child, []).append(line)
    terms = sorted({*edges["child"], *edges["parent"]})
    obo, gaf = folder / "go.obo", folder / "human.gaf"
    stanzas = ["format-version: 1.2\ndata-version: releases/2022-07-01\nontology: go\n"]
    for term in terms:
        head = f"[Term]\nid: {term}\nname: {term}\nnamespace: biological_process"
        stanzas.append("\n".join([head, *up.get(term, [])]) + "\n")
    obo.write_text("\n".join(stanzas))
    table = pd.read_csv(data / "go_bp_human_2022-07-01_closure.tsv.gz", sep="\t", keep_default_na=False)
    direct = table[table["direct"] == 1]
    with gaf.open("w") as file:
        file.write("!gaf-version: 2.2\n!date-generated: 2022-07-01\n")
        for term, gene in zip(direct["go_id"], direct["symbol"], strict=True):
            file.write(f"U\tP\t{gene}\tinvolved_in\t{term}\tR\tIDA\t\tP\t\t\tprotein\tt\td\tG\t\t\n")
    return obo, gaf


def plain_clusters(sets: PathwaySets, cut: float) -> np.ndarray:
    """All distances, one tree."""
    dense = member_matrix(sets).toarray().astype(bool)
    return fcluster(linkage(pdist(dense, "jaccard"), "complete"), cut, "distance")


def same_partition(one: np.ndarray, other: np.ndarray) -> float:
    """Share of sets whose cluster has the same members in both."""
    clusters = [
        {label: frozenset(np.flatnonzero(labels == label).tolist()) for label in np.unique(labels)}
        for labels in (one, other)
    ]
    return float(np.mean([clusters[0][a] == clusters[1][b] for a, b in zip(one, other, strict=True)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    arguments = parser.parse_args()
    data = data_folder()
    seconds: dict[str, float] = {}

    def timed(name: str, call: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = call()
        seconds[name] = time.perf_counter() - start
        print(f"{seconds[name]:8.2f} s  {name}", flush=True)
        return result

    closure = timed(
        "read the closure as a table", lambda: read_pathways(data / "go_bp_human_2022-07-01_closure.tsv.gz")
    )
    with tempfile.TemporaryDirectory() as folder:
        obo, gaf = write_release(data, Path(folder))
        ontology = timed("read the ontology as OBO", lambda: read_obo(obo))
        annotations = timed("read the annotations as GAF", lambda: read_gaf(gaf))
    closed = relations(regulates=True)
    own = timed("close the annotations over the graph", lambda: gene_sets(ontology, annotations, closed))
    pairs = sum(map(len, own.genes))
    print(f"{'':12}{len(own):,} terms, {pairs:,} pairs (table: {sum(map(len, closure.genes)):,})")

    everything = Measured.of_names({gene for part in own.genes for gene in part}, "all")
    wide = SelectionConfig(count="annotated", min_genes=1, max_genes=None)

    def ancestry(terms: Any) -> Any:
        return ontology.ancestry(terms, closed)

    for name, config in {**PRESETS, "jaccard on all 15,975 terms": wide}.items():
        selection = timed(
            f"select: {name}", lambda c=config: select(own, c, measured=everything, ancestry=ancestry)
        )
        print(f"{'':12}{len(selection.sets):,} selected")

    config = SelectionConfig(count="annotated", redundancy="none")
    candidates = select(own, config).sets
    some = PathwaySets(candidates.ids[:PLAIN], candidates.names[:PLAIN], candidates.genes[:PLAIN])
    plain = timed(f"cluster {len(some):,} sets, all distances", lambda: plain_clusters(some, 0.5))
    sparse = timed(f"cluster {len(some):,} sets, as here", lambda: clusters(member_matrix(some), 0.5))
    ratio = (
        seconds[f"cluster {len(some):,} sets, all distances"]
        / seconds[f"cluster {len(some):,} sets, as here"]
    )
    agree = same_partition(plain, sparse)
    print(f"ratio: {ratio:.0f} times faster; {agree:.1%} of the sets in the same cluster (the rest: ties)")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"seconds": seconds, "ratio": ratio, "same": agree}, indent=1))


if __name__ == "__main__":
    main()
