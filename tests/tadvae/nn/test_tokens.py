"""Tokens: the functions of expression, which genes are tokens, and vectors from the user's files."""

import gzip
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ragged import CORNERS, problems

from tadvae.base.filesystem import Location
from tadvae.nn.strategies.base import PathwayConfig, expression
from tadvae.nn.tokens import TokenValues, measured
from tadvae.nn.vectors import given_genes, given_pathways, leading, read_vectors

SEEDED = settings(max_examples=30, deadline=None, derandomize=True)
MODES = ["scale", "film", "bins"]


def functions_of(mode):
    return expression(PathwayConfig(masking="members", value_mode=mode, n_bins=5, bins_max=4.0))


@pytest.mark.parametrize("mode", MODES)
@SEEDED
@given(st.lists(st.floats(0, 4, width=32), max_size=6))
def test_every_mode_contains_the_plain_one(mode, values):
    x = torch.tensor(values, dtype=torch.float64)
    functions = functions_of(mode)
    phi = functions.of(x).dense(functions.n_basis)
    torch.testing.assert_close(phi @ torch.tensor(functions.identity, dtype=torch.float64), x)


@SEEDED
@given(st.floats(-3, 9, width=32))
def test_hats(value):
    functions = functions_of("bins")
    x = torch.tensor([value], dtype=torch.float64)
    phi = functions.of(x).dense(5)[0]
    inside = min(max(value, 0.0), 4.0)  # constant beyond the ends
    expected = [max(0.0, 1 - abs(inside - knot)) for knot in range(5)]
    np.testing.assert_allclose(phi, expected, atol=1e-12)
    assert phi.sum() == pytest.approx(1)


def test_modes_start_as_one_function():
    """film and bins as E·(1 + x) + r·x, so that neither starts with a step behind the other."""
    rows, x = torch.randn(6, 8), torch.tensor([0.0, 0.3, 1.0, 1.7, 3.9, 4.0])
    tokens = []
    for mode in ("film", "bins"):
        torch.manual_seed(3)
        tokens.append(TokenValues(functions_of(mode), 8)(rows, x))
    torch.testing.assert_close(*tokens)
    r = (tokens[0][2] - 2 * rows[2]) / 1.0
    torch.testing.assert_close(tokens[0], rows * (1 + x[:, None]) + x[:, None] * r)
    assert (TokenValues(functions_of("scale"), 8)(rows, x) == rows * x[:, None]).all()


@pytest.mark.parametrize("mode", MODES)
def test_modulate_and_embed_agree(mode):
    torch.manual_seed(0)
    functions, rows, x = functions_of(mode), torch.randn(6, 8), torch.rand(6) * 5
    values = TokenValues(functions, 8)
    phi = functions.of(x).dense(functions.n_basis)
    torch.testing.assert_close((phi[:, :, None] * values.modulate(rows)).sum(1), values(rows, x))


@SEEDED
@given(problems())
def test_measured_genes(problem):
    cells = problem.packed()
    full = measured(cells)
    assert full.n_cells == cells.n_cells
    for i, (dataset, cell) in enumerate(problem.cells):
        here = full.cell == i
        assert full.gene_ids[here].tolist() == problem.panels[dataset]  # unmeasured genes never
        expressed = dict(cell)
        assert full.values[here].tolist() == [expressed.get(g, 0.0) for g in problem.panels[dataset]]
    full.values.sum().backward()
    assert (cells.values.grad == 1).all()


def test_measured_genes_must_be_known():
    cells = CORNERS.packed()
    with pytest.raises(ValueError, match="needs the measured genes"):
        measured(replace(cells, panels=(), panel=None))
    with pytest.raises(ValueError, match="not in their panel"):
        measured(replace(cells, panels=(torch.tensor([0, 1]), cells.panels[1])))


def test_parts_of_packed_cells():
    cells = CORNERS.packed()
    part = cells.part(2, 99)
    assert part.n_cells == 3
    assert part.gene_ids.tolist() == [1, 5, 0, 2, 4]
    assert part.cell.tolist() == [0, 1, 2, 2, 2]
    assert part.panel.tolist() == [0, 1, 0]
    assert part.offsets.tolist() == [0, 1, 2, 5]


# -- vectors from files -------------------------------------------------------------------------------


@pytest.fixture
def write(tmp_path):
    """Write named vectors in some form; returns the path."""

    def write(form, names, vectors):
        path = tmp_path / f"v.{form}"
        lines = ["\t".join([name, *map(str, row)]) for name, row in zip(names, vectors, strict=True)]
        header = "\t".join(["name", *(f"d{i}" for i in range(len(vectors[0])))])
        frame = pd.DataFrame(vectors, columns=[f"d{i}" for i in range(len(vectors[0]))])
        if form == "tsv":
            path.write_text("\n".join([header, *lines]) + "\n")
        elif form == "txt":  # no header
            path.write_text("\n".join(lines))
        elif form == "csv":
            path.write_text("\n".join([header, *lines]).replace("\t", ","))
        elif form == "tsv.gz":
            path.write_bytes(gzip.compress("\n".join([header, *lines]).encode()))
        elif form == "parquet":
            frame.insert(0, "name", names)
            frame.to_parquet(path)
        else:
            path = tmp_path / "lists.parquet"
            pq.write_table(pa.table({"vector": pa.array(list(map(list, vectors))), "name": names}), path)
        return str(path)

    return write


FORMS = ["tsv", "txt", "csv", "tsv.gz", "parquet", "lists"]
NAMES = ["G0", "NA", "S7", "GO:1"]
VECTORS = [[1.0, -2.5, 0.125], [3.0, 4.0, 5e-3], [0.0, 0.0, 1.0], [7.0, 8.0, 9.0]]


@pytest.mark.parametrize("form", FORMS)
def test_read_vectors(write, form):
    names, vectors = read_vectors(Location.of(write(form, NAMES, VECTORS)))
    assert names == NAMES
    np.testing.assert_array_equal(vectors, VECTORS)


@pytest.mark.parametrize(
    ("text", "about"),
    [
        ("", "not a table of vectors"),
        ("gene\td0\td1\n", "holds no vectors"),
        ("G0\nG1\n", "holds no vectors"),
        ("G0\t1\t2\nG1\t1\n", "not a table of vectors"),
        ("G0\t1\t2\nG1\t1\t2\t3\n", "not a table of vectors"),
        ("G0\t1\t2\nG1\tx\t3\n", "not a table of vectors"),
        ("G0\t1\tnan\n", "the vector of 'G0' has missing or infinite numbers"),
        ("G0\t1\tinf\n", "the vector of 'G0' has missing or infinite numbers"),
        ("G0\t1\t2\nG0\t3\t4\n", "'G0' has two vectors"),
    ],
)
def test_malformed_text_is_refused(tmp_path, refused, text, about):
    path = tmp_path / "v.tsv"
    path.write_text(text)
    sentence = refused(read_vectors, Location.of(str(path)))
    assert str(path) in sentence
    assert about in sentence


def test_other_malformed_files_are_refused(tmp_path, refused):
    assert "no such file" in refused(read_vectors, Location.of(str(tmp_path / "none.tsv")))
    path = tmp_path / "v.parquet"
    path.write_bytes(b"not parquet at all")
    assert "not a table of vectors" in refused(read_vectors, Location.of(str(path)))
    pq.write_table(pa.table({"a": [[1.0], [2.0]], "b": [[1.0], [2.0]], "gene": ["x", "y"]}), path)
    assert "columns a, b, gene" in refused(read_vectors, Location.of(str(path)))
    pq.write_table(pa.table({"gene": ["x", "y"], "v": [[1.0], [2.0, 3.0]]}), path)
    assert "not a table of vectors" in refused(read_vectors, Location.of(str(path)))
    (tmp_path / "v.tsv").write_bytes(b"\x1f\x8bbroken")
    assert "not a table of vectors" in refused(read_vectors, Location.of(str(tmp_path / "v.tsv")))


def test_gene_vectors_meet_the_vocabulary(small_vocabulary, write):
    """By key or by symbol; a key goes before a symbol; genes without a vector stay zero."""
    vocabulary = replace(small_vocabulary, reference="own")
    file = write(
        "tsv",
        ["S7", "G0", "G7", "unknown", "S2"],
        [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0], [9.0, 1.0]],
    )
    rows = given_genes(file, vocabulary, 2)
    assert rows.shape == (vocabulary.n_genes, 2)
    assert rows[0].tolist() == [3.0, 4.0]
    assert rows[2].tolist() == [9.0, 1.0]
    assert rows[7].tolist() in ([5.0, 6.0], [1.0, 2.0])
    assert rows.any(1).nonzero()[:, 0].tolist() == [0, 2, 7]


def test_aliases_are_resolved(small_vocabulary, write):
    genes = small_vocabulary.genes.copy()
    genes.loc[0, ["gene", "ensembl_id", "symbol"]] = ["ENSG00000141510", "ENSG00000141510", "TP53"]
    vocabulary = replace(small_vocabulary, genes=genes, reference="human")
    rows = given_genes(write("tsv", ["ENSG00000141510.18", "BRCA1"], [[1.0, 2.0], [3.0, 4.0]]), vocabulary, 2)
    assert rows[0].tolist() == [1.0, 2.0]
    assert not rows[1:].any()


def test_pathway_vectors_by_id_or_name(small_vocabulary, write):
    rows = given_pathways(
        write("tsv", ["pathway 2", "P:0", "P:2"], [[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]), small_vocabulary, 2
    )
    assert rows.shape == (small_vocabulary.membership.n_pathways, 2)
    assert rows[0].tolist() == [2.0, 2.0]
    assert rows[2].tolist() == [3.0, 3.0]  # the id goes before the name
    assert not rows[1].any()


def test_vectors_of_strangers_are_refused(small_vocabulary, write, refused):
    vocabulary = replace(small_vocabulary, reference="own")
    file = write("tsv", ["X", "Y"], [[1.0, 2.0], [3.0, 4.0]])
    assert "none of its 2 rows names one of the 12 genes of the vocabulary" in refused(
        given_genes, file, vocabulary, 2
    )
    assert "names one of the 6 pathways" in refused(given_pathways, file, vocabulary, 2)


def test_other_widths_keep_what_varies_most():
    rng = np.random.default_rng(0)
    plane = rng.normal(size=(50, 3)) @ rng.normal(size=(3, 20)) + 100.0  # three dimensions, far from zero
    rows = leading(plane, 5)
    assert rows.shape == (50, 5)
    assert np.linalg.norm(rows, axis=1).mean() == pytest.approx(1)
    assert np.abs(rows[:, 3:]).max() < 1e-6

    def distances(points):
        return np.linalg.norm(points[:, None] - points[None], axis=2)

    ratio = distances(rows)[np.triu_indices(50, 1)] / distances(plane)[np.triu_indices(50, 1)]
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-6)
    np.testing.assert_array_equal(leading(plane, 20), plane)  # the model's own width: as given
    wide = leading(plane, 30)
    assert wide.shape == (50, 30)
    assert not wide[:, 20:].any()
    assert not leading(np.ones((3, 4)), 2).any()
