"""Bad input: one sentence that names file, column or gene and the fix, and nothing is written."""

import h5py
import numpy as np
import pytest
from scipy import sparse

from tadvae.store.source import open_source
from tadvae.store.spec import load_spec

SMALL_CHUNKS = {"chunk_rows": 16}
PERTURBATION = {"column": "condition", "control": "control", "separator": "+"}


@pytest.fixture
def expect(not_converted, write_spec):
    """Convert a screen; expect these words, and the file's name, in the refusal."""

    def expect(screen, *words, **settings):
        sentence = not_converted(write_spec(screen, **settings))
        for word in ("screen0", *words):
            assert word in sentence

    return expect


@pytest.fixture
def expect_file(not_converted, write_spec, screen, tmp_path):
    """Spoil the file after it was written, then as above."""

    def expect_file(spoil, *words):
        spec = write_spec(screen)
        spoil(tmp_path / "screen0.h5ad")
        sentence = not_converted(spec)
        for word in ("'screen0'", str(tmp_path / "screen0.h5ad"), *words):
            assert word in sentence

    return expect_file


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (np.log1p, ["not a whole number", "log-transformed", "raw counts", "values: log1p"]),
        (lambda X: X / 2.5, ["not a whole number", "normalised"]),
        (lambda X: (X - X.mean(axis=0)) / X.std(axis=0), ["negative", "scaled", "raw counts"]),
    ],
)
@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix, sparse.csc_matrix])
def test_transformed_values(expect, screen, change, words, form):
    screen.X = form(change(screen.X.toarray()))
    expect(screen, *words)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (-1.0, ["-1", "negative"]),
        (2.0**31, ["2,147,483,647", "too large for a count of molecules"]),
        (np.nan, ["nan", "not a finite number"]),
        (np.inf, ["inf", "not a finite number"]),
        (1e300, ["not a finite number"]),  # as float32, which is what is stored
        (0.5, ["0.5", "not a whole number"]),
    ],
)
@pytest.mark.parametrize("row", [0, 17, 47])  # in the first, a middle and the last chunk
def test_one_wrong_value(expect, screen, value, words, row):
    X = screen.X.toarray().astype(np.float64)
    X[row, 3] = value
    screen.X = sparse.csr_matrix(X)
    expect(screen, "'G4'", f"'cell{row:02d}'", *words, layout=SMALL_CHUNKS)


def test_log1p_values_that_are_raw_counts(expect, screen):
    expect(screen, "looks like a raw count", "values: counts", values="log1p")


def test_log1p_values_with_a_raw_count_among_them(expect, screen):
    X = np.log1p(screen.X.toarray())
    X[40, 2] = 250
    screen.X = X
    expect(screen, "250", "'G3'", "'cell40'", "raw count", values="log1p", layout=SMALL_CHUNKS)


@pytest.mark.parametrize("value", [-0.5, np.nan])
def test_wrong_log1p_values(expect, screen, value):
    X = np.log1p(screen.X.toarray())
    X[40, 2] = value
    screen.X = X
    expect(screen, "'G3'", "'cell40'", values="log1p", layout=SMALL_CHUNKS)


def test_wrong_values_of_a_second_screen(not_converted, write_spec, screen):
    other = screen.copy()
    other.X = np.log1p(other.X.toarray())
    assert "'screen1'" in not_converted(write_spec(screen, other, layout=SMALL_CHUNKS))


def test_genes_that_meet_after_harmonisation(expect, screen):
    screen.var_names = ["TP53", "ENSG00000141510", *(f"GENE{i}" for i in range(8))]
    words = ["duplicate genes", "TP53", "ENSG00000141510", "sum or drop"]
    expect(screen, *words, reference="human", max_unknown=1.0)


def test_unknown_genes(expect, screen):
    screen.var_names = ["TP53", "KLF1", *(f"X{i}9X" for i in range(8))]
    words = ["80% of 10 gene names", "X09X", "more than 70%", "right column of var"]
    expect(screen, *words, reference="human", max_unknown=0.7)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"perturbation": {**PERTURBATION, "control": "NT"}}, ["no control cells", "'NT'", "'G1+G2'"]),
        ({"perturbation": {**PERTURBATION, "column": "target"}}, ["'target'", "lane", "perturbation.column"]),
        ({"context": {"column": "tissue"}}, ["'tissue'", "lane", "context.column"]),
        ({"batch": "plate"}, ["'plate'", "lane", "batch.column"]),
        ({"total_counts": "umis"}, ["'umis'", "depth", "total_counts"]),
        ({"total_counts": "lane"}, ["'lane'", "library size"]),
        ({"counts": {"layer": "raw"}}, ["'raw'", "spliced", "correct 'counts'"]),
        ({"genes": {"column": "id"}}, ["'id'", "var", "genes.column"]),
        ({"genes": {"symbols": "name"}}, ["'name'", "var", "genes.symbols"]),
        ({"genes": {"length": "bases"}}, ["'bases'", "var", "genes.length"]),
    ],
)
def test_what_the_spec_names_is_absent(expect, screen, settings, words):
    screen.layers["spliced"] = screen.X.copy()
    expect(screen, *words, **settings)


@pytest.mark.parametrize("label", ["G1+", "+G1", "G1++G2", "+"])
def test_a_label_that_does_not_parse(expect, screen, label):
    screen.obs["condition"] = screen.obs["condition"].replace("G1", label)
    expect(screen, repr(label), "'condition'", "separator '+'", "fix the label")


@pytest.mark.parametrize("column", ["condition", "line", "lane"])
def test_missing_labels(expect, screen, column):
    screen.obs.loc[["cell03", "cell11"], column] = None
    expect(screen, "2 cells", f"'{column}'", "label them", batch="lane")


@pytest.mark.parametrize("value", [np.nan, -3.0, np.inf])
def test_a_library_size_that_is_none(expect, screen, value):
    screen.obs.loc["cell05", "depth"] = value
    expect(screen, "'depth'", "library size", "remove 'total_counts'", total_counts="depth")


@pytest.mark.parametrize("part", ["cells", "genes"])
def test_nothing_in_the_file(expect, screen, part):
    empty = screen[:0].copy() if part == "cells" else screen[:, :0].copy()
    expect(empty, f"0 {part}", "nothing to convert")


def test_lengths_that_are_none(expect, screen):
    screen.var["bases"] = [1000.0] * 9 + [0.0]
    expect(screen, "'bases'", "positive length", genes={"length": "bases"})


def test_not_an_h5ad(expect_file):
    expect_file(lambda path: path.write_text("cell,gene\n"), "not an .h5ad", "written by anndata")


def test_a_truncated_file(expect_file):
    expect_file(lambda path: path.write_bytes(path.read_bytes()[:9000]), "damaged")


def edit(change):
    def spoil(path):
        with h5py.File(path, "r+") as file:
            change(file)

    return spoil


def replace(name, value):
    def change(file):
        del file[name]
        if value is not None:
            file[name] = value

    return edit(change)


@pytest.mark.parametrize("name", ["X", "obs", "var"])
def test_hdf5_but_not_an_h5ad(expect_file, name):
    expect_file(replace(name, None), "HDF5 but not an .h5ad", name, "written by anndata")


@pytest.mark.parametrize(
    "spoil",
    [
        edit(lambda file: file["X"].attrs.__setitem__("encoding-type", "other")),
        edit(lambda file: file["X"].attrs.__setitem__("shape", [40, 10])),
        replace("X", np.arange(10.0)),
        replace("X", np.full((48, 10), b"a")),
        replace("obs", np.arange(48)),
    ],
)
def test_a_damaged_structure(expect_file, spoil):
    expect_file(spoil, "cannot be read as .h5ad", "write it again")


def test_a_missing_part_of_the_matrix(expect_file):
    expect_file(replace("X/indptr", None), "rows 0 to 47", "indptr", "damaged")


def test_an_index_beyond_the_genes(expect_file):
    expect_file(edit(lambda file: file["X/indices"].__setitem__(5, 99)), "rows 0 to 47", "damaged")


def test_a_damaged_block_of_values(not_converted, write_spec, screen, tmp_path):
    """The file opens; only the compressed values are spoilt."""
    spec, path = write_spec(screen), tmp_path / "screen0.h5ad"
    screen.write_h5ad(path, compression="gzip")
    with h5py.File(path) as file:
        block = file["X/data"].id.get_chunk_info(0)
    spoilt = bytearray(path.read_bytes())
    spoilt[block.byte_offset : block.byte_offset + block.size] = bytes(block.size)
    path.write_bytes(spoilt)
    sentence = not_converted(spec)
    for word in (str(path), "rows 0 to 47", "damaged"):
        assert word in sentence


def test_no_pickle_is_loaded(expect_file):
    """An object column would need one."""
    expect_file(replace("obs", np.void(b"\x80\x04cos\nsystem\n")), "cannot be read as .h5ad")


def test_cells_without_a_label_are_dropped(write_spec, screen):
    screen.obs.loc[["cell03", "cell11"], "condition"] = None
    spec = load_spec(write_spec(screen, perturbation={**PERTURBATION, "missing": "drop"}))
    with open_source(spec.datasets[0]) as source:
        labels = source.labels()
    assert len(labels.source_row) == 46
    assert not {"cell03", "cell11"} & set(labels.cell_id)


def test_labels(write_spec, screen):
    perturbation = {**PERTURBATION, "control": ["control", "NT"], "rename": {"G2": "G9"}}
    screen.obs["condition"] = screen.obs["condition"].replace({"G1": "G1+NT", "G1+G2": "G2 + G1"})
    screen.obs.loc["cell00", "condition"] = "NT"
    spec = load_spec(write_spec(screen, perturbation=perturbation, batch="lane", total_counts="depth"))
    with open_source(spec.datasets[0]) as source:
        labels = source.labels()
    assert labels.perturbations == [(), ("G1",), ("G9",), ("G1", "G9")]
    np.testing.assert_array_equal(labels.perturbation, np.tile([0, 1, 2, 3], 12))
    assert labels.contexts == ["A549", "K562"]
    np.testing.assert_array_equal(labels.context, np.repeat([1, 0], 24))
    np.testing.assert_array_equal(labels.batch, screen.obs["lane"])
    np.testing.assert_array_equal(labels.total_counts, screen.obs["depth"])


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix, sparse.csc_matrix])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int64, np.uint16])
def test_rows_of_any_form(write_spec, screen, form, dtype):
    X = screen.X.toarray()
    screen.layers["raw"] = form(X.astype(dtype))
    spec = load_spec(write_spec(screen, counts={"layer": "raw"}))
    with open_source(spec.datasets[0]) as source:
        for start, stop in [(0, 48), (0, 1), (13, 30), (47, 48)]:
            values = source.rows(start, stop)
            np.testing.assert_array_equal(values.toarray(), X[start:stop])
            assert (values.data > 0).all()
            assert values.has_sorted_indices


def test_stored_zeros_and_duplicates_are_resolved(write_spec, screen, tmp_path):
    spec = load_spec(write_spec(screen))
    with h5py.File(tmp_path / "screen0.h5ad", "r+") as file:
        del file["X/data"], file["X/indices"], file["X/indptr"]
        file["X/data"] = np.array([0, 2, 3, 5], np.float32)
        file["X/indices"] = np.array([1, 4, 4, 0], np.int32)
        file["X/indptr"] = np.array([0] + [4] * 48, np.int32)
    with open_source(spec.datasets[0]) as source:
        values = source.rows(0, 2)
    np.testing.assert_array_equal(values.indices, [0, 4])
    np.testing.assert_array_equal(values.data, [5, 5])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("datasets: [{name: a, path: screen0.h5ad, seperator: x}]", ["seperator", "spelling"]),
        ("datasets: [a: b: c", ["line 1", "not valid YAML"]),
        ("datasets: [{name: a, path: screen0.h5ad}, {name: a, path: screen0.h5ad}]", ["'a' is repeated"]),
        ("datasets: [{name: a, path: screen9.h5ad}]", ["no file at", "screen9.h5ad", "'path'"]),
        (
            "datasets: [{name: a, path: screen0.h5ad}]\ngenes: {reference: none.tsv}",
            ["none.tsv", "gene table"],
        ),
    ],
)
def test_a_wrong_spec(not_converted, write_spec, screen, text, words):
    spec = write_spec(screen)
    spec.write_text(text)
    sentence = not_converted(spec)
    for word in words:
        assert word in sentence


@pytest.mark.parametrize(
    ("settings", "setting", "name"),
    [
        ({"modality": {"default": "CRISPRko", "G9": "stimulation"}}, "'modality'", "G9"),
        ({"perturbation": {**PERTURBATION, "rename": {"G77": "G2"}}}, "'perturbation.rename'", "G77"),
    ],
)
def test_a_setting_about_a_target_that_never_occurs(
    screen, write_spec, not_converted, settings, setting, name
):
    sentence = not_converted(write_spec(screen, **settings))
    assert f"{setting} names {name}" in sentence
    assert "spelling" in sentence
