"""The packaged default: what it holds, what it needs, and what each panel gets of it."""

import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tadvae.genes.harmonise import canonical_targets
from tadvae.genes.reference import GeneReference
from tadvae.pathway_selection.redundancy import jaccard_survivors
from tadvae.pathway_selection.selection import PRESETS, member_matrix
from tadvae.pathways.default import NAME, default_pathways, packaged
from tadvae.pathways.membership import membership

N_PATHWAYS = 3227

BARE = """
import socket, sys
def refuse(*a, **k): raise OSError("no network here")
socket.socket.connect = refuse
socket.create_connection = refuse
for name in ("obonet", "pooch", "networkx", "requests", "torch", "ray"):
    sys.modules[name] = None  # an import of it fails
from tadvae.genes.reference import GeneReference
from tadvae.pathways.default import default_pathways, packaged
import numpy as np
genes = sorted({gene for part in packaged().ensembl for gene in part if gene})
print(len(packaged()), len(default_pathways(genes, [np.arange(len(genes))], GeneReference.load("human"))))
"""


@pytest.fixture(scope="module")
def human() -> GeneReference:
    return GeneReference.load("human")


@pytest.fixture(scope="module")
def vocabulary() -> list[str]:
    return sorted({gene for part in packaged().ensembl for gene in part if gene})


def test_loads_without_network_and_extra_packages():
    done = subprocess.run(
        [sys.executable, "-c", BARE], capture_output=True, text=True, check=True, timeout=120
    )
    loaded, suited = map(int, done.stdout.split())
    assert loaded == N_PATHWAYS
    assert 1500 < suited < loaded


def test_what_it_holds():
    table = packaged()
    config = PRESETS["packaged"]
    assert len(table) == N_PATHWAYS
    assert all(a < b for a, b in pairwise(table.ids))
    sizes = np.array([len(part) for part in table.symbols])
    assert sizes.min() >= config.min_genes
    assert sizes.max() <= config.max_genes
    assert jaccard_survivors(member_matrix(table.sets()), config.bound)[0].all()
    named = sum(gene is not None for part in table.ensembl for gene in part)
    assert named > 0.999 * sizes.sum()
    assert all(symbol for part in table.symbols for symbol in part)
    assert [len(part) for part in table.ensembl] == sizes.tolist()
    interferon = table.ids.index("GO:0034340")
    assert table.names[interferon] == "response to type I interferon"
    assert {"IFNAR1", "STAT2", "TYK2"} <= set(table.symbols[interferon])


def test_both_names_of_a_gene_mean_the_same(human):
    table = packaged()
    pairs = sorted(
        {pair for part in zip(table.symbols, table.ensembl, strict=True) for pair in zip(*part, strict=True)}
    )
    keys = canonical_targets([symbol for symbol, _ in pairs], human)
    assert [key for key, (_, ensembl) in zip(keys, pairs, strict=True) if ensembl is not None] == [
        ensembl for _, ensembl in pairs if ensembl is not None
    ]


def test_ancestors_hold_the_genes_of_their_descendants():
    table = packaged()
    genes = {key: set(part) for key, part in zip(table.ids, table.symbols, strict=True)}
    pairs = [(key, a) for key, part in zip(table.ids, table.ancestors, strict=True) for a in part]
    assert len(pairs) > 1000
    assert all(genes[key] <= genes[above] for key, above in pairs)


def test_provenance():
    about = packaged().provenance
    assert "CC BY 4.0" in about["licence"]
    assert [each["release"] for each in about["sources"]] == ["2022-07-01", "2022-07-01"]
    assert [each["package"].split()[0] for each in about["sources"]] == ["GO.db", "org.Hs.eg.db"]
    assert all(len(each["sha256"]) == 64 for each in about["sources"])
    assert about["selection"] == PRESETS["packaged"].model_dump(mode="json")
    assert about["settings"]["relations"] == ["is_a", "part_of"]
    assert [report["filter"] for report in about["filters"]] == ["size", "redundancy"]
    assert about["filters"][-1]["left"] == N_PATHWAYS


def by_definition(vocabulary: list[str], panel: set[int], least: int) -> set[str]:
    """Seen pathways none of whose descendants is seen."""
    table = packaged()
    measured = {vocabulary[i] for i in panel}
    seen = {
        key for key, part in zip(table.ids, table.ensembl, strict=True) if len(measured & set(part)) >= least
    }
    covered = {a for key, part in zip(table.ids, table.ancestors, strict=True) if key in seen for a in part}
    return seen - covered


@settings(max_examples=8, deadline=None)
@given(st.lists(st.integers(5, 4000), min_size=1, max_size=3), st.integers(0, 2**32), st.sampled_from([3, 5]))
def test_each_panel_gets_the_most_specific_it_can_see(human, vocabulary, sizes, seed, least):
    rng = np.random.default_rng(seed)
    panels = [np.sort(rng.choice(len(vocabulary), size, replace=False)) for size in sizes]
    expected = set().union(*(by_definition(vocabulary, set(panel.tolist()), least) for panel in panels))
    sets = default_pathways(vocabulary, panels, human, least)
    assert set(sets.ids) == (expected or set(packaged().ids))
    assert sets.ids == sorted(sets.ids)
    if expected:
        kept = membership(sets, vocabulary, lambda names: canonical_targets(names, human), panels, least)
        assert kept.n_pathways == len(sets)


def test_small_panels_see_broader_terms(human, vocabulary):
    small = np.random.default_rng(0).choice(len(vocabulary), 300, replace=False)
    sets = default_pathways(vocabulary, [np.sort(small)], human)
    large = default_pathways(vocabulary, [np.arange(len(vocabulary))], human)
    assert np.mean([len(genes) for genes in sets.genes]) > 3 * np.mean([len(genes) for genes in large.genes])
    # together each keeps what it needs
    both = default_pathways(vocabulary, [np.sort(small), np.arange(len(vocabulary))], human)
    assert set(both.ids) == set(sets.ids) | set(large.ids)


def test_symbols_where_the_vocabulary_has_symbols(human):
    table = packaged()
    genes = sorted({gene for part in table.symbols for gene in part})
    sets = default_pathways(genes, [np.arange(len(genes))], GeneReference.load("none"))
    assert "TP53" in {gene for part in sets.genes for gene in part}
    kept = membership(sets, genes, lambda names: list(names))
    assert kept.n_pathways == len(sets)


def test_ensembl_ids_where_the_vocabulary_has_them(vocabulary):
    none = GeneReference.load("none")
    sets = default_pathways(vocabulary, [np.arange(len(vocabulary))], none)
    kept = membership(sets, vocabulary, lambda names: canonical_targets(names, none))
    assert kept.n_pathways == len(sets) < N_PATHWAYS
    assert kept.coverage.n_identifiers_matched > 0.99 * kept.coverage.n_identifiers


def test_genes_of_nobody(refused):
    genes = [f"SIM{i}" for i in range(50)]
    reference = GeneReference.load("none")
    sets = default_pathways(genes, [np.arange(50)], reference)
    assert len(sets) == N_PATHWAYS
    sentence = refused(membership, sets, genes, lambda names: canonical_targets(names, reference))
    assert sentence.startswith(f"{NAME}: none of its {N_PATHWAYS} pathways")
